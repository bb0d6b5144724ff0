// One agent: what it is, its tasks, its tunnels, whom it trusts, its last events.

import { h, replace } from "/shared/dom.js";
import { bytes, duration, integer, milliseconds } from "/shared/format.js";
import { asking, Repeat } from "./app.js";
import { eventRow } from "./eventspage.js";
import { card, facts, moment, Part, plainTable, problemLine, stateOf, tagList } from "./parts.js";

const REFRESH_MS = 2_000;

export class AgentPage {
  constructor(main, app) {
    this._app = app;
    this._name = new URLSearchParams(location.search).get("name") ?? "";
    document.title = `${this._name} · pilotfleet monitor`;
    this._problem = problemLine();
    this._state = h("span", {});
    const parts = {
      facts: (detail) => this._facts(detail),
      tasks: (tasks) => this._tasks(tasks),
      peers: (peers) => this._names(peers, "No tunnel is open."),
      trusted: (trusted) => this._names(trusted, "It trusts nobody yet."),
      events: (events) => this._events(events),
    };
    this._parts = {};
    const roots = {};
    for (const [name, draw] of Object.entries(parts)) {
      roots[name] = h("div", {});
      this._parts[name] = new Part(roots[name], draw);
    }
    replace(
      main,
      h("p", { class: "crumb" }, h("a", { href: app.href("/agents"), on: { click: back } }, "Agents")),
      h("div", { class: "agent-head" }, h("h1", {}, this._name), this._state),
      this._problem,
      h(
        "div",
        { class: "agent-grid" },
        card("Agent", roots.facts),
        card("Last tasks", roots.tasks),
        card("Tunnels to", roots.peers),
        card("Trust with", roots.trusted),
        card("Last events", roots.events),
      ),
    );
    const job = asking(this._problem, async (signal) => {
      const detail = await app.ask(`agents/${encodeURIComponent(this._name)}`, {}, { signal });
      if (!signal.aborted) this._show(detail);
    });
    this._repeat = new Repeat(REFRESH_MS, job);
  }

  update() {}

  close() {
    this._repeat.close();
  }

  _show(detail) {
    const { tasks, peers, trusted, events, ...rest } = detail;
    replace(this._state, stateOf(detail.row.state));
    this._parts.facts.show(rest);
    this._parts.tasks.show(tasks);
    this._parts.peers.show(peers);
    this._parts.trusted.show(trusted);
    this._parts.events.show(events);
  }

  _facts({ row, uptime_s, address, bytes_sent, bytes_received }) {
    return facts([
      ["Status", row.status || "–"],
      ["Last seen", moment(row.last_seen, this._app)],
      ["Up for", duration(uptime_s)],
      ["Tags", row.tags.length ? tagList(row.tags) : "–"],
      ["Polo", integer(row.polo)],
      ["Tasks completed", integer(row.completed)],
      ["Tasks failed", integer(row.failed)],
      ["Tunnels", integer(row.tunnels)],
      ["Sent", bytes(bytes_sent)],
      ["Received", bytes(bytes_received)],
      ["Address", address ? h("span", { class: "mono" }, address) : "–"],
      ["Node", row.node_id === null ? "–" : h("span", { class: "mono" }, row.node_id)],
      ["Version", row.version || "–"],
    ]);
  }

  _tasks(tasks) {
    if (!tasks.length) return h("p", { class: "muted" }, "None since the monitor knows it.");
    const rows = tasks.map((task) =>
      h(
        "tr",
        {},
        h("td", { class: "when" }, moment(task.at, this._app)),
        h("td", {}, outcome(task.status)),
        h("td", { class: "number" }, milliseconds(task.ms)),
        h("td", { class: "said" }, task.text),
        h("td", { class: "mono" }, task.task_id),
      ),
    );
    const heads = [["Ended"], ["Result"], ["Time", "number"], ["Said"], ["Task"]];
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Last tasks" },
      plainTable("Last tasks, newest first", heads, rows));
  }

  _names(names, none) {
    if (!names.length) return h("p", { class: "muted" }, none);
    // Names may be of agents of the fleet, or addresses; the page of one says it.
    const items = names.map((name) => h("li", {}, h("a", { href: this._app.agentHref(name) }, name)));
    return h("ul", { class: "names" }, items);
  }

  _events(events) {
    if (!events.length) return h("p", { class: "muted" }, "None lately.");
    return h("ul", { class: "feed" }, events.map(eventRow));
  }
}

const outcome = (status) => {
  const isGood = /^(succeeded|completed|ok|done)$/i.test(status);
  return h("span", { class: `state ${isGood ? "good" : "bad"}` }, status.toLowerCase());
};

// To the list as it was left, with its filters and at its place.
function back(event) {
  const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.button);
  if (!isPlain || history.state?.before !== "/agents") return;
  event.preventDefault();
  history.back();
}
