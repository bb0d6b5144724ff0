// Who trusts whom: a picture, the same as a list, and the feed of changes.

import { debounced, h, replace, setText } from "/shared/dom.js";
import { integer } from "/shared/format.js";
import { asking, Repeat } from "./app.js";
import { Graph } from "./graph.js";
import { card, moment, Part, plainTable, problemLine, stateOf } from "./parts.js";

const REFRESH_MS = 5_000;
const LISTED = 100;

export class TrustPage {
  constructor(main, app) {
    this._app = app;
    this._data = { nodes: [], links: [], hidden_nodes: 0, hidden_links: 0 };
    this._selected = "";
    this._problem = problemLine();
    this._about = h("p", { class: "muted small" });
    this._tip = h("p", { class: "graph-tip", hidden: true, "aria-hidden": "true" });
    this._canvas = h("canvas", { role: "img", "aria-label": "Graph of trust and tunnels. The list of links says the same." });
    const [chosen, changes, list] = [h("div", { "aria-live": "polite" }), h("div", {}), h("div", {})];
    this._chosen = new Part(chosen, (value) => this._drawChosen(value));
    this._changes = new Part(changes, (value) => this._drawChanges(value));
    this._list = new Part(list, (value) => this._drawList(value));
    this._filter = this._makeFilter();
    const feed = card("Changes", changes);
    feed.classList.add("feed-card");
    replace(
      main,
      h("h1", {}, "Trust"),
      this._problem,
      h(
        "div",
        { class: "trust-grid" },
        this._makePicture(),
        h("div", { class: "trust-side" }, card("Chosen agent", chosen), feed),
      ),
      card("Agents by links", this._filter, list),
    );
    this._graph = new Graph(this._canvas, {
      onSelect: (name) => this._select(name),
      onHover: (node) => this._hover(node),
    });
    this._onKey = (event) => event.key === "Escape" && this._select("");
    document.addEventListener("keydown", this._onKey);
    this._chosen.show(null);
    const job = asking(this._problem, (signal) => this._read(signal));
    this._repeat = new Repeat(REFRESH_MS, job);
  }

  update() {
    const { figures } = this._app;
    if (!figures) return;
    // A change of trust is shown at once.
    const count = `${figures.trust_linked} ${figures.trust_revoked} ${figures.trust_links}`;
    if (this._count !== undefined && this._count !== count) this._repeat.now();
    this._count = count;
  }

  close() {
    this._repeat.close();
    this._graph.close();
    document.removeEventListener("keydown", this._onKey);
  }

  async _read(signal) {
    const [graph, { changes }] = await Promise.all([
      this._app.ask("trust", {}, { signal }),
      this._app.ask("trust-changes", { limit: LISTED }, { signal }),
    ]);
    if (signal.aborted) return;
    this._data = graph;
    this._graph.show(graph.nodes, graph.links);
    const trust = graph.links.filter((link) => link.kind === "trust").length;
    const shown = `${integer(graph.nodes.length)} agents, ${integer(trust)} trust links, ${integer(graph.links.length - trust)} tunnels`;
    const hidden = graph.hidden_nodes ? `; ${integer(graph.hidden_nodes)} agents with fewer links are not drawn` : "";
    setText(this._about, shown + hidden);
    this._changes.show(changes);
    this._showList();
    this._showChosen();
  }

  _makePicture() {
    const button = (text, name, click) =>
      h("button", { type: "button", class: "button", "aria-label": name, title: name, on: { click } }, text);
    return h(
      "figure",
      { class: "card picture" },
      h(
        "div",
        { class: "picture-head" },
        h(
          "ul",
          { class: "legend small", "aria-label": "Legend" },
          h("li", { class: "line trust" }, "trust"),
          h("li", { class: "line tunnel" }, "tunnel"),
          ["alive", "late", "lost"].map((state) => h("li", {}, stateOf(state))),
        ),
        h(
          "div",
          { class: "zoom" },
          button("−", "Smaller", () => this._graph.zoom(1 / 1.4)),
          button("+", "Larger", () => this._graph.zoom(1.4)),
          button("Fit", "Show all", () => this._graph.fit()),
        ),
      ),
      h("div", { class: "canvas-box" }, this._canvas, this._tip),
      h("figcaption", {}, this._about),
    );
  }

  _makeFilter() {
    return h("input", {
      class: "search",
      type: "search",
      placeholder: "Search by name",
      "aria-label": "Search the agents of the graph by name",
      maxlength: 200,
      spellcheck: "false",
      on: { input: debounced(() => this._showList(), 100) },
    });
  }

  _hover(node) {
    this._tip.hidden = node === null;
    if (node === null) return;
    setText(this._tip, `${node.name} · ${node.state}`);
    const [x, y] = this._graph.placeOf(node.name);
    // Away from the edge that is nearer.
    const isRight = x > this._canvas.clientWidth / 2;
    const left = isRight ? x - this._tip.offsetWidth - 14 : x + 14;
    this._tip.style.setProperty("transform", `translate(${Math.round(left)}px, ${Math.round(y - 12)}px)`);
  }

  _select(name) {
    this._selected = name;
    this._graph.select(name);
    this._showChosen();
  }

  _showChosen() {
    const node = this._data.nodes.find(({ name }) => name === this._selected);
    if (!node) {
      this._chosen.show(null);
      return;
    }
    const mine = this._data.links.filter((link) => link.one === node.name || link.other === node.name);
    const others = (kind) =>
      mine.filter((link) => link.kind === kind).map((link) => (link.one === node.name ? link.other : link.one));
    this._chosen.show({ name: node.name, state: node.state, trust: others("trust"), tunnel: others("tunnel") });
  }

  _drawChosen(value) {
    if (value === null) return h("p", { class: "muted" }, "None. Click a point, or a name in the list below.");
    const names = (list) => (list.length ? list.slice(0, 12).join(", ") + (list.length > 12 ? " …" : "") : "nobody");
    return [
      h("p", { class: "chosen" }, h("a", { href: this._app.agentHref(value.name) }, value.name), " ", stateOf(value.state)),
      h("p", {}, h("b", {}, `${integer(value.trust.length)} trust`), h("span", { class: "muted" }, ` ${names(value.trust)}`)),
      h("p", {}, h("b", {}, `${integer(value.tunnel.length)} tunnels`), h("span", { class: "muted" }, ` ${names(value.tunnel)}`)),
    ];
  }

  _drawChanges(changes) {
    if (!changes.length) return h("p", { class: "muted" }, "None yet.");
    const items = changes.map(({ at, change, one, other }) =>
      h(
        "li",
        {},
        h("span", { class: `state ${change === "linked" ? "good" : "bad"}` }, change),
        h("span", { class: "pair" }, `${one} – ${other}`),
        moment(at, this._app),
      ),
    );
    return h("ul", { class: "changes", tabindex: 0, "aria-label": "Changes of trust, newest first" }, items);
  }

  _showList() {
    const text = this._filter.value.trim().toLowerCase();
    const counts = new Map(this._data.nodes.map(({ name, state }) => [name, { name, state, trust: 0, tunnel: 0 }]));
    for (const { one, other, kind } of this._data.links) {
      for (const end of [one, other]) if (counts.has(end)) counts.get(end)[kind] += 1;
    }
    const fitting = [...counts.values()].filter(({ name }) => name.toLowerCase().includes(text));
    fitting.sort((one, other) => other.trust + other.tunnel - one.trust - one.tunnel);
    this._list.show({ rows: fitting.slice(0, LISTED), hidden: Math.max(0, fitting.length - LISTED) });
  }

  _drawList({ rows, hidden }) {
    if (!rows.length) return h("p", { class: "muted" }, "No agent fits.");
    const body = rows.map(({ name, state, trust, tunnel }) =>
      h(
        "tr",
        {},
        h("td", {}, h("button", { type: "button", class: "link", on: { click: () => this._select(name) } }, name)),
        h("td", {}, stateOf(state)),
        h("td", { class: "number" }, integer(trust)),
        h("td", { class: "number" }, integer(tunnel)),
      ),
    );
    const heads = [["Agent"], ["State"], ["Trust", "number"], ["Tunnels", "number"]];
    const more = hidden ? h("p", { class: "muted small" }, `${integer(hidden)} more; search for them.`) : null;
    return [plainTable("Agents by links", heads, body), more];
  }
}
