// What the server sends by itself, and whether it still does.

import { setText } from "./dom.js";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30000;

/**
 * Follow server-sent events.
 *   live("/api/stream", { events: { figures: (value) => … }, status: element, onLost })
 * The status element (role="status") says whether the page is live; `onLost` is called
 * each time it is not. Returns a function that ends it.
 */
export function live(url, { events, status = null, onLost = () => {} }) {
  let source = null;
  let pause = FIRST_PAUSE_MS;
  let timer = 0;
  let ended = false;

  const say = (text, kind) => {
    if (status === null) return;
    setText(status, text);
    status.className = `live state ${kind}`;
  };

  function open() {
    clearTimeout(timer);
    if (ended) return;
    source = new EventSource(url);
    source.onopen = () => {
      pause = FIRST_PAUSE_MS;
      say("live", "good");
    };
    source.onerror = () => {
      // The browser would try again too, but not after every kind of error, and all
      // pages at the same moment.
      source.close();
      say("not live, connecting again", "warn");
      onLost();
      timer = setTimeout(open, pause * (0.5 + Math.random()));
      pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
    };
    for (const [name, take] of Object.entries(events)) {
      source.addEventListener(name, (event) => take(JSON.parse(event.data)));
    }
  }

  const onShown = () => {
    if (document.visibilityState === "visible" && source?.readyState === EventSource.CLOSED) open();
  };
  document.addEventListener("visibilitychange", onShown);
  say("connecting", "off");
  open();
  return () => {
    ended = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", onShown);
    source?.close();
  };
}
