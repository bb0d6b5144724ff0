// A table of any length: only the rows in sight exist, and only the windows of data
// around them are fetched.

import { h, replace, setText } from "./dom.js";

const WINDOW = 100; // Rows of one request.
const KEPT_WINDOWS = 30;
const OVERSCAN = 6; // Rows drawn above and below what can be seen.
const SETTLE_MS = 40; // A fast scroll asks for nothing on its way.
const NARROW = "(max-width: 639px)";

let tables = 0;

/**
 * A virtual table in `root`, which becomes a grid for screen readers.
 *
 * options:
 *   label        what the table is, for screen readers
 *   columns      [{ label, width, render(row) → Node | text, number, sort, narrow, wideOnly }]
 *                width is a CSS grid track, narrow one for phones; sort is the name that `fetchWindow` gets;
 *                descending: true sorts downwards at the first press
 *   fetchWindow  async ({ offset, limit, sort, signal }) → { total, rows }
 *   sort         "name" or "-name" at the beginning
 *   onOpen(row)  Enter or a click on a row
 *   onSort(sort) after the user chose another order
 *   empty        text when there are no rows
 *   noun         what is counted in the foot: "agents"
 */
export class VirtualTable {
  constructor(root, options) {
    this.options = options;
    this.sort = options.sort ?? "";
    this.total = 0;
    this.active = -1;
    this.id = `vtable-${(tables += 1)}`;
    this.windows = new Map(); // Index of the window to its rows; the oldest first.
    this.pending = new Map(); // Index of the window to its AbortController.
    this.drawn = new Map(); // Index of the row to { element, row }.
    this.generation = 0;
    this.media = matchMedia(NARROW);
    this._build(root);
    this.onMedia = () => this._layOut();
    this.media.addEventListener("change", this.onMedia);
    this.watcher = new ResizeObserver(() => this._draw());
    this.watcher.observe(this.body);
    this._layOut();
    this.reset();
  }

  /** Forget all rows and begin at the top: after another search or filter. */
  reset() {
    this._forget();
    this.active = -1;
    this.body.scrollTop = 0;
    this._announce();
    this._want();
  }

  /** Fetch again what is in sight; it stays until the new rows are there. */
  refresh() {
    const [first, last] = this._sight();
    const seen = new Set(this._windowsOf(first, last));
    for (const index of [...this.windows.keys()]) if (!seen.has(index)) this.windows.delete(index);
    for (const index of seen) if (!this.pending.has(index)) this._fetch(index);
  }

  /** Give up what lives longer than the element: for pages that change their content. */
  close() {
    this._forget();
    clearTimeout(this.settling);
    this.media.removeEventListener("change", this.onMedia);
    this.watcher.disconnect();
  }

  /** Order by "name", or "-name" for the other way round. */
  setSort(sort) {
    this.sort = sort;
    this._markSort();
    this.reset();
  }

  _build(root) {
    const { columns, label, noun } = this.options;
    this.heads = columns.map((column) => {
      const text = column.sort
        ? h("button", { type: "button", on: { click: () => this._press(column) } }, column.label)
        : h("span", {}, column.label);
      return h("div", { role: "columnheader", class: cellClass(column) }, text);
    });
    this.head = h("div", { class: "vhead", role: "row", "aria-rowindex": 1 }, this.heads);
    this.space = h("div", { class: "vspace", role: "presentation" });
    this.blank = h("div", { class: "vempty", hidden: true });
    this.body = h("div", { class: "vbody", role: "rowgroup", tabindex: -1 }, this.space, this.blank);
    this.foot = h("div", { class: "vfoot", role: "status" });
    this.grid = h(
      "div",
      { role: "grid", tabindex: 0, "aria-label": label, "aria-colcount": columns.length },
      this.head,
      this.body,
    );
    root.classList.add("vtable");
    replace(root, this.grid, this.foot);
    this.noun = noun ?? "rows";
    this.body.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this.grid.addEventListener("keydown", (event) => this._key(event));
    this._markSort();
  }

  _layOut() {
    const shown = this.options.columns.filter((column) => !(this.media.matches && column.wideOnly));
    const width = (column) => (this.media.matches && column.narrow) || column.width || "1fr";
    this.grid.style.setProperty("--columns", shown.map(width).join(" "));
    this.rowHeight = parseFloat(getComputedStyle(this.grid).getPropertyValue("--row")) || 36;
    this._draw();
  }

  // Order.

  _press(column) {
    const first = column.descending ? `-${column.sort}` : column.sort;
    const second = column.descending ? column.sort : `-${column.sort}`;
    this.setSort(this.sort === first ? second : first);
    this.options.onSort?.(this.sort);
  }

  _markSort() {
    this.options.columns.forEach((column, index) => {
      if (!column.sort) return;
      const way = this.sort === column.sort ? "ascending" : this.sort === `-${column.sort}` ? "descending" : "none";
      this.heads[index].setAttribute("aria-sort", way);
    });
  }

  // Fetching.

  _sight() {
    const first = Math.floor(this.body.scrollTop / this.rowHeight);
    const count = Math.ceil(this.body.clientHeight / this.rowHeight);
    return [Math.max(0, first), Math.max(0, first + count)];
  }

  _windowsOf(first, last) {
    const windows = [];
    for (let index = Math.floor(first / WINDOW); index * WINDOW <= last; index += 1) {
      if (index === 0 || index * WINDOW < this.total) windows.push(index);
    }
    return windows;
  }

  _want() {
    const [first, last] = this._sight();
    // One window more in both directions, so that a calm scroll never waits.
    const wanted = this._windowsOf(Math.max(0, first - WINDOW / 2), last + WINDOW / 2);
    for (const [index, controller] of this.pending) {
      if (!wanted.includes(index)) controller.abort();
    }
    for (const index of wanted) {
      if (!this.windows.has(index) && !this.pending.has(index)) this._fetch(index);
    }
  }

  async _fetch(index) {
    const generation = this.generation;
    const controller = new AbortController();
    this.pending.set(index, controller);
    try {
      const page = await this.options.fetchWindow({
        offset: index * WINDOW,
        limit: WINDOW,
        sort: this.sort,
        signal: controller.signal,
      });
      if (generation !== this.generation) return;
      this._keep(index, page);
    } catch (error) {
      if (error.name === "AbortError" || generation !== this.generation) return;
      setText(this.foot, `${error.message}${error.hint ? ` – ${error.hint}` : ""}`);
    } finally {
      if (this.pending.get(index) === controller) this.pending.delete(index);
    }
  }

  _keep(index, page) {
    this.windows.delete(index);
    this.windows.set(index, page.rows);
    while (this.windows.size > KEPT_WINDOWS) this.windows.delete(this.windows.keys().next().value);
    this.total = page.total;
    this.isKnown = true;
    this._announce();
    this._draw();
  }

  _forget() {
    this.generation += 1;
    for (const controller of this.pending.values()) controller.abort();
    this.pending.clear();
    this.windows.clear();
    for (const { element } of this.drawn.values()) element.remove();
    this.drawn.clear();
    this.isKnown = false;
  }

  // Drawing.

  _announce() {
    const { empty } = this.options;
    this.grid.setAttribute("aria-rowcount", this.isKnown ? this.total + 1 : -1);
    this.space.style.setProperty("height", `${this.total * this.rowHeight}px`);
    this.blank.hidden = !this.isKnown || this.total > 0;
    setText(this.blank, empty ?? "Nothing fits.");
    const count = new Intl.NumberFormat("en").format(this.total);
    setText(this.foot, this.isKnown ? `${count} ${this.noun}` : "Loading …");
  }

  _scrolled() {
    if (!this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this._draw();
      });
    }
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this._want(), SETTLE_MS);
  }

  _draw() {
    const [first, last] = this._sight();
    const from = Math.max(0, first - OVERSCAN);
    const to = Math.min(this.total, last + OVERSCAN);
    for (const [index, { element }] of this.drawn) {
      if (index < from || index >= to) {
        element.remove();
        this.drawn.delete(index);
      }
    }
    for (let index = from; index < to; index += 1) this._drawRow(index);
    this._markActive();
  }

  _drawRow(index) {
    const row = this.windows.get(Math.floor(index / WINDOW))?.[index % WINDOW];
    let drawn = this.drawn.get(index);
    if (drawn === undefined) {
      const element = h("div", {
        class: "vrow",
        role: "row",
        id: `${this.id}-${index}`,
        "aria-rowindex": index + 2,
        on: { click: (event) => this._click(event, index) },
      });
      element.style.setProperty("top", `${index * this.rowHeight}px`);
      drawn = { element, row: null };
      this.drawn.set(index, drawn);
      this.space.append(element);
    } else if (drawn.row === row) {
      return;
    }
    drawn.row = row;
    drawn.element.classList.toggle("waiting", row === undefined);
    replace(drawn.element, this.options.columns.map((column) => this._cell(column, row)));
  }

  _cell(column, row) {
    const content = row === undefined ? "…" : column.render(row);
    return h("div", { role: "gridcell", class: cellClass(column) }, content);
  }

  // The row that the keyboard is at.

  _markActive() {
    const current = this.drawn.get(this.active);
    for (const { element } of this.drawn.values()) {
      element.classList.toggle("active", element === current?.element);
      element.setAttribute("aria-selected", element === current?.element);
    }
    if (current) this.grid.setAttribute("aria-activedescendant", current.element.id);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  _click(event, index) {
    this.active = index;
    this._markActive();
    const isControl = event.target.closest("a, button") !== null;
    if (!isControl && getSelection().isCollapsed) this._open();
  }

  _open() {
    const row = this.drawn.get(this.active)?.row;
    if (row) this.options.onOpen?.(row);
  }

  _key(event) {
    if (event.target !== this.grid || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.rowHeight) - 1);
    const targets = {
      ArrowDown: this.active + 1,
      ArrowUp: this.active - 1,
      PageDown: Math.max(0, this.active) + page,
      PageUp: this.active - page,
      Home: 0,
      End: this.total - 1,
    };
    if (event.key === "Enter") this._open();
    else if (event.key in targets) this._moveTo(targets[event.key]);
    else return;
    event.preventDefault();
  }

  _moveTo(index) {
    if (this.total === 0) return;
    this.active = Math.min(this.total - 1, Math.max(0, index));
    const top = this.active * this.rowHeight;
    const bottom = top + this.rowHeight;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    else if (bottom > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = bottom - this.body.clientHeight;
    this._draw();
  }
}

function cellClass(column) {
  return [column.number && "number", column.wideOnly && "wide-only"].filter(Boolean).join(" ") || null;
}
