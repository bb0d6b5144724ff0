// All agents of the fleet: search, filters by state and tag, and the table.

import { debounced, h, replace } from "/shared/dom.js";
import { integer } from "/shared/format.js";
import { VirtualTable } from "/shared/table.js";
import { asking, Repeat } from "./app.js";
import { moment, Part, problemLine, stateOf, tagList, toggle } from "./parts.js";

const STATES = ["alive", "late", "lost", "left"];
const REFRESH_MS = 2_000;
const TAGS_MS = 5_000;
const FEW_TAGS = 12;

export class AgentsPage {
  constructor(main, app) {
    this._app = app;
    this._shownAt = performance.now();
    const asked = new URLSearchParams(location.search);
    this._search = asked.get("search") ?? "";
    this._states = new Set(asked.getAll("state").filter((state) => STATES.includes(state)));
    this._tags = new Set(asked.getAll("tag").slice(0, 10));
    this._hasAllTags = false;
    this._problem = problemLine();
    const states = h("div", { class: "tags", role: "group", "aria-label": "State" });
    const tags = h("div", { class: "tags", role: "group", "aria-label": "Tag" });
    this._statePart = new Part(states, (shown) => this._drawStates(shown));
    this._tagPart = new Part(tags, (shown) => this._drawTags(shown));
    const table = h("div", {});
    replace(main, h("h1", {}, "Agents"), this._makeTools(states, tags), this._problem, table);
    this._table = new VirtualTable(table, {
      label: "Agents",
      columns: this._columns(),
      sort: asked.get("sort") ?? "name",
      nouns: ["agent", "agents"],
      empty: "No agent fits the search.",
      fetchWindow: (wanted) => this._fetch(wanted),
      onOpen: (row) => app.go(app.agentHref(row.name)),
      onSort: () => this._remember(),
      onRest: (position) => this._keepPlace(position),
      position: history.state?.table,
    });
    if (history.state?.table?.active >= 0) this._table.grid.focus({ preventScroll: true });
    this._repeat = new Repeat(TAGS_MS, asking(this._problem, (signal) => this._readTags(signal)));
  }

  update() {
    const counts = this._app.figures?.agents;
    this._statePart.show({ counts, chosen: [...this._states] });
    if (document.hidden || performance.now() - this._shownAt < REFRESH_MS) return;
    this._shownAt = performance.now();
    this._table.refresh();
  }

  // The page is left; the address is still its own.
  leave() {
    this._keepPlace(this._table.position);
  }

  close() {
    this._repeat.close();
    this._table.close();
  }

  _columns() {
    return [
      { label: "Agent", width: "minmax(84px, 2fr)", sort: "name", render: (row) => this._name(row) },
      { label: "State", width: "58px", sort: "state", render: (row) => stateOf(row.state) },
      { label: "Status", width: "minmax(60px, 0.7fr)", sort: "status", wideOnly: true, render: (row) => row.status },
      { label: "Tags", width: "minmax(100px, 1.7fr)", wideOnly: true, render: (row) => tagList(row.tags) },
      count("Polo", "polo", "64px", true),
      count("Completed", "completed", "76px"),
      count("Failed", "failed", "50px"),
      count("Tunnels", "tunnels", "68px", true),
      {
        label: "Seen",
        width: "86px",
        sort: "last_seen",
        descending: true,
        wideOnly: true,
        number: true,
        render: (row) => moment(row.last_seen, this._app),
      },
    ];
  }

  // A link, so that it can be opened beside; the keyboard goes by rows.
  _name(row) {
    const href = this._app.agentHref(row.name);
    return h("a", { class: "name", href, tabindex: -1, title: row.name }, row.name);
  }

  _makeTools(states, tags) {
    this._searchBox = h("input", {
      class: "search",
      type: "search",
      placeholder: "Search by name",
      "aria-label": "Search agents by name",
      maxlength: 200,
      value: this._search,
      autocomplete: "off",
      spellcheck: "false",
      on: {
        input: debounced(() => this._find(this._searchBox.value.trim()), 150),
        keydown: (event) => this._searchKey(event),
      },
    });
    return h(
      "div",
      { class: "card agent-tools", role: "search" },
      h("div", { class: "tools" }, h("div", { class: "grow" }, this._searchBox), states),
      tags,
    );
  }

  _searchKey(event) {
    if (event.key === "Escape" && this._searchBox.value) {
      this._searchBox.value = "";
      this._find("");
    } else if (event.key === "ArrowDown") {
      this._table.grid.focus();
      event.preventDefault();
    }
  }

  _find(text) {
    if (text === this._search) return;
    this._search = text;
    this._changed();
  }

  _changed() {
    this._remember();
    this._table.reset();
  }

  _query() {
    const query = {};
    if (this._search) query.search = this._search;
    if (this._states.size) query.state = [...this._states];
    if (this._tags.size) query.tag = [...this._tags];
    return query;
  }

  // The address says what is shown, so that it can be kept and sent.
  _remember() {
    const { sort } = this._table;
    const order = sort === "name" ? {} : { sort };
    history.replaceState(history.state, "", this._app.href("/agents", { ...this._query(), ...order }));
  }

  // Whoever comes back from an agent's page finds the table where it was.
  _keepPlace(position) {
    history.replaceState({ ...history.state, table: position }, "");
  }

  async _fetch({ offset, limit, sort, signal }) {
    const params = { ...this._query(), sort, offset, limit };
    const page = await this._app.ask("agents", params, { signal });
    return { total: page.total, rows: page.rows };
  }

  async _readTags(signal) {
    const { tags } = await this._app.ask("tags", {}, { signal });
    this._known = tags;
    this._showTags();
  }

  _showTags() {
    const known = (this._known ?? []).map(({ tag, agents }) => [tag, agents.alive + agents.late + agents.lost]);
    const few = known.filter(([tag], at) => this._hasAllTags || at < FEW_TAGS || this._tags.has(tag));
    const unknown = [...this._tags].filter((tag) => !known.some(([name]) => name === tag));
    this._tagPart.show({
      tags: [...few, ...unknown.map((tag) => [tag, 0])],
      hidden: known.length - few.length,
      chosen: [...this._tags],
    });
  }

  _drawStates({ counts, chosen }) {
    return STATES.map((state) => {
      const number = counts ? h("span", { class: "muted" }, ` ${integer(counts[state])}`) : null;
      const on = () => this._toggle(this._states, state, () => this.update());
      return toggle([stateOf(state), number], { pressed: chosen.includes(state), on });
    });
  }

  _drawTags({ tags, hidden, chosen }) {
    const buttons = tags.map(([tag, agents]) =>
      toggle([tag, h("span", { class: "muted" }, ` ${integer(agents)}`)], {
        pressed: chosen.includes(tag),
        on: () => this._toggle(this._tags, tag, () => this._showTags()),
      }),
    );
    if (hidden > 0 || this._hasAllTags) buttons.push(this._moreButton(hidden));
    return buttons;
  }

  _moreButton(hidden) {
    const click = () => {
      this._hasAllTags = !this._hasAllTags;
      this._showTags();
    };
    const text = this._hasAllTags ? "fewer tags" : `${integer(hidden)} more tags`;
    return h("button", { type: "button", class: "tag more", on: { click } }, text);
  }

  _toggle(chosen, value, redraw) {
    if (!chosen.delete(value)) chosen.add(value);
    const at = [...document.querySelectorAll("button.tag")].indexOf(document.activeElement);
    redraw();
    // The buttons are new; the keyboard stays where it was.
    document.querySelectorAll("button.tag")[at]?.focus();
    this._changed();
  }
}

const count = (label, sort, width, wideOnly = false) => ({
  label,
  width,
  sort,
  wideOnly,
  number: true,
  descending: true,
  render: (row) => integer(row[sort]),
});
