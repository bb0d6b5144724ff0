// The rows of a virtual table that are in the page. Those that go out of sight come in
// again at the other end: a scroll makes no elements, moves by transforms, and writes
// only what differs.

import { h } from "./dom.js";

export class Rows {
  /** Rows in `space`, whose ids begin with `id`; columns as of VirtualTable. */
  constructor(space, columns, id) {
    this._space = space;
    this._columns = columns;
    this._id = id;
    this._shown = new Map(); // Index of the row to its slot, see _make.
    this._free = []; // Slots that show no row.
    this._marked = null;
  }

  /** Show the rows of a range, as `rowAt(index)` has them; undefined for one that is awaited. */
  show(from, to, rowAt, height) {
    for (const [index, slot] of this._shown) {
      if (index >= from && index < to) continue;
      this._shown.delete(index);
      this._free.push(slot);
    }
    for (let index = from; index < to; index += 1) {
      fill(this._shown.get(index) ?? this._place(index, height), this._columns, rowAt(index));
    }
    // What shows no row is not in the page, so nobody finds or reads it there.
    for (const { element } of this._free) element.remove();
  }

  clear() {
    this.show(0, 0);
  }

  /** What is shown at an index. */
  at(index) {
    return this._shown.get(index)?.row;
  }

  /** The index of the row that an element is in; -1 for none. */
  indexOf(element) {
    const row = element.closest(".vrow");
    for (const slot of this._shown.values()) if (slot.element === row) return slot.index;
    return -1;
  }

  /** Mark the row of an index and no other; return the id of its element, null if it is not shown. */
  mark(index) {
    const slot = this._shown.get(index) ?? null;
    if (slot !== this._marked) {
      setMark(this._marked, false);
      setMark(slot, true);
      this._marked = slot;
    }
    return slot && slot.element.id;
  }

  /** Put the elements in the order of their rows, for those who read one after the other. */
  straighten() {
    if (this._space.contains(document.activeElement)) return;
    const inOrder = [...this._shown.values()].sort((one, other) => one.index - other.index);
    const { children } = this._space;
    if (inOrder.some(({ element }, at) => children[at] !== element)) {
      this._space.append(...inOrder.map(({ element }) => element));
    }
  }

  _place(index, height) {
    const slot = this._free.pop() ?? this._make();
    slot.index = index;
    slot.element.id = `${this._id}-${index}`;
    slot.element.setAttribute("aria-rowindex", index + 2);
    slot.element.style.transform = `translateY(${index * height}px)`;
    if (!slot.element.isConnected) this._space.append(slot.element);
    this._shown.set(index, slot);
    return slot;
  }

  _make() {
    const cells = this._columns.map((column, at) =>
      h("div", { role: "gridcell", "aria-colindex": at + 1, class: cellClass(column) }),
    );
    const element = h("div", { class: "vrow", role: "row", "aria-selected": "false" }, cells);
    return { element, cells, index: -1, row: null };
  }
}

/** The classes of a column's cells. */
export function cellClass(column) {
  return [column.number && "number", column.wideOnly && "wide-only"].filter(Boolean).join(" ") || null;
}

function fill(slot, columns, row) {
  if (slot.row === row) return;
  slot.row = row;
  slot.element.classList.toggle("waiting", row === undefined);
  columns.forEach((column, at) => put(slot.cells[at], row === undefined ? "…" : column.render(row)));
}

/** Put other content into a cell; text that is the same stays. */
function put(cell, content) {
  if (content instanceof Node) cell.replaceChildren(content);
  else if (cell.firstElementChild || cell.textContent !== String(content)) cell.textContent = content;
}

function setMark(slot, isMarked) {
  slot?.element.classList.toggle("active", isMarked);
  slot?.element.setAttribute("aria-selected", String(isMarked));
}
