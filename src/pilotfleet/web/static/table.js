// A table of any length: only the rows in sight exist, and only the windows of data
// around them are fetched.

import { h, replace, setText } from "./dom.js";
import { cellClass, Rows } from "./rows.js";

const WINDOW = 100; // Rows of one request.
const KEPT_WINDOWS = 30;
const OVERSCAN = 6; // Rows drawn above and below what can be seen.
const SETTLE_MS = 40; // How long a scroll rests until its rows are asked for.
const REST_MS = 250; // And until its place is told: browsers refuse to note more than a few a second.
const CALM_PX_PER_MS = 6; // A faster scroll asks for nothing on its way.
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
 *   onRest(position) after a scroll or another row was chosen
 *   position     what onRest was given once: begin there
 *   empty        text when there are no rows
 *   nouns        what is counted in the foot: ["agent", "agents"]
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
    this.generation = 0;
    this.scroll = { top: 0, height: 0, speed: 0, at: 0 };
    this.media = matchMedia(NARROW);
    this._build(root);
    this.onMedia = () => this._layOut();
    this.media.addEventListener("change", this.onMedia);
    this.watcher = new ResizeObserver(() => this._draw());
    this.watcher.observe(this.body);
    this._layOut();
    this._begin(options.position);
  }

  /** Forget all rows and begin at the top: after another search or filter. */
  reset() {
    this._begin();
    this.options.onRest?.(this.position);
  }

  /** Where the user is in the table. */
  get position() {
    return { top: this.scroll.top, active: this.active, total: this.total };
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
    clearTimeout(this.resting);
    cancelAnimationFrame(this.frame);
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
    const { columns, label } = this.options;
    this.heads = columns.map((column, at) => {
      const text = column.sort
        ? h("button", { type: "button", on: { click: () => this._press(column) } }, column.label)
        : h("span", {}, column.label);
      return h("div", { role: "columnheader", "aria-colindex": at + 1, class: cellClass(column) }, text);
    });
    this.head = h("div", { class: "vhead", role: "row", "aria-rowindex": 1 }, this.heads);
    this.space = h("div", { class: "vspace", role: "presentation" });
    this.blank = h("div", { class: "vempty", hidden: true });
    this.rows = new Rows(this.space, columns, this.id);
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
    this.body.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this.space.addEventListener("click", (event) => this._click(event));
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

  _begin({ top = 0, active = -1, total = this.total } = {}) {
    this._forget();
    this.active = active;
    this.total = total;
    this._announce();
    this.body.scrollTop = top;
    this._look();
    this._want();
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

  // Read where the table is scrolled to; all that is written comes after it.
  _look() {
    const [top, height, at] = [this.body.scrollTop, this.body.clientHeight, performance.now()];
    const { top: before, at: then } = this.scroll;
    this.scroll = { top, height, at, speed: Math.abs(top - before) / Math.max(1, at - then) };
  }

  _sight() {
    const first = Math.floor(this.scroll.top / this.rowHeight);
    const count = Math.ceil(this.scroll.height / this.rowHeight);
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
    const before = this.windows.get(index) ?? [];
    this.windows.delete(index);
    this.windows.set(index, page.rows.map((row, at) => same(before[at], row)));
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
    this.rows.clear();
    this.isKnown = false;
  }

  // Drawing.

  _announce() {
    const { empty, nouns = ["row", "rows"] } = this.options;
    this.grid.setAttribute("aria-rowcount", this.isKnown ? this.total + 1 : -1);
    const height = `${this.total * this.rowHeight}px`;
    if (this.space.style.height !== height) this.space.style.height = height;
    this.blank.hidden = !this.isKnown || this.total > 0;
    setText(this.blank, empty ?? "Nothing fits.");
    const count = new Intl.NumberFormat("en").format(this.total);
    setText(this.foot, this.isKnown ? `${count} ${nouns[this.total === 1 ? 0 : 1]}` : "Loading …");
  }

  _scrolled() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this._draw();
      if (this.scroll.speed < CALM_PX_PER_MS) this._want();
    });
    this._restSoon();
  }

  _restSoon() {
    clearTimeout(this.settling);
    clearTimeout(this.resting);
    this.settling = setTimeout(() => {
      this._want();
      this.rows.straighten();
    }, SETTLE_MS);
    this.resting = setTimeout(() => this.options.onRest?.(this.position), REST_MS);
  }

  _draw() {
    this._look();
    const [first, last] = this._sight();
    const rowAt = (index) => this.windows.get(Math.floor(index / WINDOW))?.[index % WINDOW];
    this.rows.show(Math.max(0, first - OVERSCAN), Math.min(this.total, last + OVERSCAN), rowAt, this.rowHeight);
    this._markActive();
  }

  // The row that the keyboard is at.

  _markActive() {
    const id = this.rows.mark(this.active);
    if (id === this.activeId) return;
    this.activeId = id;
    if (id) this.grid.setAttribute("aria-activedescendant", id);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  _click(event) {
    const index = this.rows.indexOf(event.target);
    if (index < 0) return;
    this._choose(index);
    const isControl = event.target.closest("a, button") !== null;
    if (!isControl && getSelection().isCollapsed) this._open();
  }

  _choose(index) {
    this.active = index;
    this._markActive();
    this.options.onRest?.(this.position);
  }

  _open() {
    const row = this.rows.at(this.active);
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
    else if (event.key === "Escape") this._choose(-1);
    else if (event.key in targets) this._moveTo(targets[event.key]);
    else return;
    event.preventDefault();
  }

  _moveTo(index) {
    if (this.total === 0) return;
    this.active = Math.min(this.total - 1, Math.max(0, index));
    const top = this.active * this.rowHeight;
    const bottom = top + this.rowHeight;
    if (top < this.scroll.top) this.body.scrollTop = top;
    else if (bottom > this.scroll.top + this.scroll.height) this.body.scrollTop = bottom - this.scroll.height;
    this._draw();
    this._restSoon();
  }
}

/** The row as it was, if the new one says the same: it is not drawn again. */
function same(before, row) {
  return before !== undefined && JSON.stringify(before) === JSON.stringify(row) ? before : row;
}
