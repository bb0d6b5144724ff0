// The shell: header, routes, the live stream. Each page is a class that takes the main
// element and the app, and has update() for new figures and close().

import { AgentPage } from "./agentpage.js";
import { AgentsPage } from "./agentspage.js";
import { AlertsPage } from "./alertspage.js";
import { App } from "./app.js";
import { EventsPage } from "./eventspage.js";
import { OverviewPage } from "./overviewpage.js";
import { tick } from "./parts.js";
import { summary } from "./summary.js";
import { TrustPage } from "./trustpage.js";
import { byId, getJson, h, replace, setText } from "/shared/dom.js";
import { integer, timeOfDay } from "/shared/format.js";
import { live } from "/shared/live.js";

const PAGES = new Map([
  ["/", ["Overview", OverviewPage]],
  ["/agents", ["Agents", AgentsPage]],
  ["/agent", ["Agent", AgentPage]],
  ["/trust", ["Trust", TrustPage]],
  ["/alerts", ["Alerts", AlertsPage]],
  ["/events", ["Events", EventsPage]],
]);
const ANNOUNCE_MS = 10_000;

class Shell {
  constructor() {
    this._app = new App((href) => this._go(href));
    this._main = byId("main");
    this._page = null;
    this._announced = "";
    this._announcedAt = -Infinity;
  }

  async start() {
    document.addEventListener("click", (event) => this._click(event));
    addEventListener("popstate", () => this._open());
    byId("fleet").addEventListener("change", (event) => this._choose(event.target.value));
    const [session, { fleets }] = await Promise.all([
      getJson("/api/session"),
      getJson("/api/fleets"),
    ]);
    byId("logout").hidden = !session.login;
    setText(byId("version"), `pilotfleet ${session.version}`);
    this._app.fleets = fleets;
    this._open();
    tick(this._app);
    live("/api/stream", {
      status: byId("live"),
      events: { figures: (state) => this._take(state) },
      // A monitor that was started anew knows no login: asked, it leads to the form.
      onLost: () => getJson("/api/session").catch(() => {}),
    });
  }

  _choose(fleet) {
    this._app.fleet = fleet;
    // An agent of this fleet is none of the other.
    const path = location.pathname === "/agent" ? "/agents" : location.pathname;
    this._go(this._app.href(path));
  }

  _click(event) {
    const link = event.target.closest?.("a[href]");
    const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.button);
    if (!link || !isPlain || link.origin !== location.origin) return;
    if (!PAGES.has(link.pathname) || link.hash || event.defaultPrevented) return;
    event.preventDefault();
    // The links of the shell know nothing of the chosen fleet.
    this._go(link.dataset.page ? this._app.href(link.dataset.page) : link.href);
  }

  _go(href) {
    this._page?.leave?.();
    history.pushState({ before: location.pathname }, "", href);
    this._open();
    scrollTo(0, 0);
    const heading = this._main.querySelector("h1");
    heading?.setAttribute("tabindex", "-1");
    heading?.focus({ preventScroll: true });
  }

  _open() {
    this._page?.close();
    this._readFleet();
    const path = PAGES.has(location.pathname) ? location.pathname : "/";
    const [title, Page] = PAGES.get(path);
    document.title = `${title} · pilotfleet monitor`;
    for (const link of document.querySelectorAll(".bar nav a")) {
      const isHere = link.dataset.page === (path === "/agent" ? "/agents" : path);
      link.toggleAttribute("aria-current", isHere);
      if (isHere) link.setAttribute("aria-current", "page");
    }
    replace(this._main);
    this._page = null;
    if (!this._app.fleet) {
      replace(this._main, h("p", { class: "card" }, "This monitor watches no fleet yet."));
      return;
    }
    this._page = new Page(this._main, this._app);
    this._page.update();
  }

  _readFleet() {
    const { fleets } = this._app;
    const asked = new URLSearchParams(location.search).get("fleet");
    this._app.fleet = fleets.includes(asked) ? asked : (fleets[0] ?? "");
    byId("chooser").hidden = fleets.length < 2;
    byId("fleet-name").hidden = fleets.length >= 2;
    setText(byId("fleet-name"), this._app.fleet);
    replace(byId("fleet"), fleets.map((name) => h("option", { value: name }, name)));
    byId("fleet").value = this._app.fleet;
  }

  _take(state) {
    const before = JSON.stringify(this._app.fleets);
    this._app.take(state);
    if (JSON.stringify(this._app.fleets) !== before) this._open();
    this._page?.update();
    const firing = this._app.firing.length;
    const badge = byId("alert-badge");
    if (badge.dataset.count !== String(firing)) {
      badge.dataset.count = firing;
      badge.hidden = !firing;
      replace(badge, integer(firing), h("span", { class: "hidden-text" }, " firing"));
    }
    setText(byId("updated"), `Figures of ${timeOfDay(this._app.now)}`);
    this._announce();
  }

  // Tell those who listen what changed, but not more often than they can bear.
  _announce() {
    const text = summary(this._app);
    const isSoon = performance.now() - this._announcedAt < ANNOUNCE_MS;
    if (text === this._announced || isSoon) return;
    this._announced = text;
    this._announcedAt = performance.now();
    setText(byId("announcer"), text);
  }
}

new Shell().start().catch((error) => {
  replace(byId("main"), h("p", { class: "card problem", role: "alert" }, error.message));
});
