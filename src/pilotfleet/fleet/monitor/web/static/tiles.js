// The five figures, and the line of small ones below them.

import { drawBars } from "/shared/charts.js";
import { h, setText } from "/shared/dom.js";
import { bytes, compact, decimal, integer, milliseconds, percent } from "/shared/format.js";
import { Part } from "./parts.js";

const perSecond = (value) => `${bytes(value)}/s`;

// A tile: its name, a large value, what it is of, and what belongs to it.
function tile(id, name, unit, ...content) {
  const value = h("span", { class: "value" }, "–");
  const root = h(
    "section",
    { class: "card tile", "aria-labelledby": `tile-${id}`, id: `figure-${id}` },
    h("h2", { id: `tile-${id}` }, name),
    h("p", { class: "large" }, value, " ", h("small", {}, unit)),
    content,
  );
  return { root, value };
}

// Small figures in a row: their names, and functions that read them.
class Row {
  constructor(items) {
    this._items = items.map(([name, read, kind]) => [h("dd", { class: kind }), read, name]);
    this.root = h(
      "dl",
      { class: "row" },
      this._items.map(([element, , name]) => h("div", {}, h("dt", {}, name), element)),
    );
  }

  show(figures) {
    for (const [element, read] of this._items) setText(element, read(figures));
  }
}

export class Tiles {
  constructor(app) {
    this._app = app;
    this._agents = this._makeAgents();
    this._tasks = tile("tasks", "Tasks per minute", "completed", this._row("_taskRow", [
      ["failed / min", ({ tasks }) => decimal(tasks.failed_per_minute)],
      ["completed", ({ tasks }) => compact(tasks.completed)],
      ["failed", ({ tasks }) => compact(tasks.failed)],
    ]));
    this._errors = tile("errors", "Error rate", "last 5 min", this._row("_timeRow", [
      ["time p50", ({ tasks }) => milliseconds(tasks.p50_ms)],
      ["time p95", ({ tasks }) => milliseconds(tasks.p95_ms)],
      ["time p99", ({ tasks }) => milliseconds(tasks.p99_ms)],
    ]));
    this._trust = tile("trust", "Trust changes", "last hour", this._row("_trustRow", [
      ["linked", ({ trust_linked }) => integer(trust_linked)],
      ["revoked", ({ trust_revoked }) => integer(trust_revoked)],
      ["links", ({ trust_links }) => integer(trust_links)],
    ]));
    const bins = h("div", { class: "small-bars" });
    this._bins = new Part(bins, (histogram) => this._drawBins(histogram));
    this._polo = tile("polo", "Polo", "median", bins, this._row("_poloRow", [
      ["p10", ({ polo }) => integer(polo.p10)],
      ["p90", ({ polo }) => integer(polo.p90)],
      ["highest", ({ polo }) => integer(polo.highest)],
    ]));
    const parts = [this._agents, this._tasks, this._errors, this._trust, this._polo];
    this.root = h("div", { class: "tiles" }, parts.map((part) => part.root));
  }

  show(figures) {
    const { agents, tasks, polo } = figures;
    setText(this._agents.value, integer(agents.alive));
    setText(this._tasks.value, decimal(tasks.completed_per_minute));
    setText(this._errors.value, percent(tasks.error_rate));
    const { trust_linked: linked, trust_revoked: revoked } = figures;
    setText(this._trust.value, linked || revoked ? `+${integer(linked)} −${integer(revoked)}` : "0");
    setText(this._polo.value, polo.agents ? integer(polo.p50) : "–");
    this._errors.root.classList.toggle("is-bad", tasks.error_rate >= 0.1);
    this._bins.show(polo.histogram);
    for (const row of [this._taskRow, this._timeRow, this._trustRow, this._poloRow]) row.show(figures);
    this._showStates(agents);
  }

  _row(name, items) {
    this[name] = new Row(items);
    return this[name].root;
  }

  _makeAgents() {
    const states = ["alive", "late", "lost"];
    this._shares = states.map((state) => h("span", { class: `share ${state}` }));
    this._counts = states.map(() => h("span", {}));
    const names = ["good", "warn", "bad"];
    const links = states.map((state, at) =>
      h(
        "a",
        { class: `state ${names[at]}`, href: this._app.href("/agents", { state }) },
        h("span", {}, this._counts[at], ` ${state}`),
      ),
    );
    return tile(
      "agents",
      "Agents",
      "alive",
      h("div", { class: "shares-bar", "aria-hidden": "true" }, this._shares),
      h("p", { class: "states" }, links),
    );
  }

  _showStates(agents) {
    [agents.alive, agents.late, agents.lost].forEach((count, at) => {
      setText(this._counts[at], integer(count));
      // A few of many are still seen.
      const share = count ? Math.max(count, (agents.alive + agents.late + agents.lost) / 60) : 0;
      this._shares[at].classList.toggle("none", !count);
      this._shares[at].style.setProperty("flex-grow", share);
    });
  }

  _drawBins(bins) {
    const root = h("div", {});
    drawBars(root, { label: "Agents by polo", bins, format: integer, noun: "agents" });
    return root;
  }
}

export class Strip {
  constructor() {
    this._row = new Row([
      ["Tunnels", ({ traffic }) => integer(traffic.tunnels)],
      ["Sent", ({ traffic }) => perSecond(traffic.sent_per_s)],
      ["Received", ({ traffic }) => perSecond(traffic.received_per_s)],
      ["Sent in all", ({ traffic }) => bytes(traffic.bytes_sent)],
      ["Received in all", ({ traffic }) => bytes(traffic.bytes_received)],
      ["Events", ({ events }) => compact(events)],
      ["Events lost", ({ events_lost }) => integer(events_lost)],
      ["Events refused", ({ events_refused }) => integer(events_refused)],
      ["Versions", ({ versions }) => namesOf(versions), "clip"],
      ["Brokers", ({ brokers }) => Object.keys(brokers).join(", ") || "–", "clip"],
    ]);
    this._row.root.classList.add("strip", "card");
    this.root = this._row.root;
  }

  show(figures) {
    this._row.show(figures);
  }
}

const namesOf = (versions) => {
  const counts = Object.entries(versions).sort((one, other) => other[1] - one[1]);
  return counts.map(([version, agents]) => `${version} (${integer(agents)})`).join(", ") || "–";
};
