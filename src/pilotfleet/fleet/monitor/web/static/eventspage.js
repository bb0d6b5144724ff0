// The last events, as they came.

import { debounced, h, replace, setText } from "/shared/dom.js";
import { integer } from "/shared/format.js";
import { asking, Repeat } from "./app.js";
import { clockTime, Part, problemLine } from "./parts.js";

const REFRESH_MS = 1_000;
const ASKED = 1_000;
const KEPT = 2_000;
const SHOWN = 200;

export const eventRow = ({ at, topic, data }) =>
  h(
    "li",
    {},
    h("span", { class: "when" }, clockTime(at)),
    h("b", { class: "topic" }, topic),
    h("code", { class: "data" }, data),
  );

export class EventsPage {
  constructor(main, app) {
    this._events = [];
    this._problem = problemLine();
    this._count = h("p", { class: "muted small" });
    const list = h("ul", { class: "feed card" });
    this._list = new Part(list, (events) => this._draw(events));
    this._filter = h("input", {
      class: "search",
      type: "search",
      placeholder: "Show events with this text",
      "aria-label": "Show events with this text",
      maxlength: 200,
      spellcheck: "false",
      on: {
        input: debounced(() => this._show(), 100),
        keydown: (event) => event.key === "Escape" && this._clear(),
      },
    });
    this._pause = h("button", { type: "button", class: "button", "aria-pressed": "false", on: { click: () => this._toggle() } }, "Pause");
    const tools = h("div", { class: "tools" }, h("div", { class: "grow" }, this._filter), this._pause);
    replace(main, h("h1", {}, "Events"), tools, this._problem, this._count, list);
    const job = asking(this._problem, async (signal) => {
      const { events } = await app.ask("events", { limit: ASKED }, { signal });
      if (signal.aborted || this._isPaused) return;
      this._take(events);
      this._show();
    });
    this._repeat = new Repeat(REFRESH_MS, job);
  }

  get _isPaused() {
    return this._pause.getAttribute("aria-pressed") === "true";
  }

  update() {}

  close() {
    this._repeat.close();
  }

  _toggle() {
    this._pause.setAttribute("aria-pressed", !this._isPaused);
    if (!this._isPaused) this._repeat.now();
  }

  _clear() {
    this._filter.value = "";
    this._show();
  }

  // The monitor keeps few; what is searched for may be rare, so the page keeps more.
  _take(events) {
    const known = new Set(this._events.slice(0, ASKED).map((event) => JSON.stringify(event)));
    const fresh = events.filter((event) => !known.has(JSON.stringify(event)));
    this._events = [...fresh, ...this._events].slice(0, KEPT);
  }

  _show() {
    const text = this._filter.value.toLowerCase();
    const shown = this._events.filter(({ topic, data }) => `${topic} ${data}`.toLowerCase().includes(text));
    setText(this._count, `${integer(shown.length)} of the last ${integer(this._events.length)} events that were seen here, newest first`);
    this._list.show(shown.slice(0, SHOWN));
  }

  _draw(events) {
    if (!events.length) return h("li", { class: "muted" }, "Nothing yet.");
    return events.map(eventRow);
  }
}
