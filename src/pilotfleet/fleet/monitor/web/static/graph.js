// Draws a trust graph on a canvas. It is a picture: what it shows can also be read in
// the list beside it, which is what keyboards and screen readers use.

import { Layout } from "./layout.js";

const FRAME_MS = 9; // Of 16: the rest is for drawing and for the page.
const SETTLE_MS = 800;
const LABELS = 14;
const FARTHEST = 0.08;
const NEAREST = 6;

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Graph {
  constructor(canvas, { onSelect, onHover }) {
    this._canvas = canvas;
    this._context = canvas.getContext("2d");
    this._onSelect = onSelect;
    this._onHover = onHover;
    this._nodes = [];
    this._trust = [];
    this._tunnels = [];
    this._layout = new Layout([], []);
    this._selected = "";
    this._hovered = -1;
    this._view = { scale: 1, x: 0, y: 0 };
    this._isFitted = true;
    this._frame = 0;
    this._drag = null;
    this._listen();
  }

  // Show nodes ({name, state}) and links ({one, other, kind}).
  show(nodes, links) {
    const names = new Set(nodes.map((node) => node.name));
    const shown = links.filter((l) => names.has(l.one) && names.has(l.other));
    const shape = JSON.stringify([[...names], shown]);
    this._nodes = nodes;
    if (shape !== this._shape) {
      this._shape = shape;
      const pairs = shown.filter((l) => l.one !== l.other).map((l) => [l.one, l.other]);
      this._layout = new Layout([...names], pairs, this._layout.places());
      this._nodes = [...names].map((name) => nodes.find((node) => node.name === name));
      const at = (name) => this._layout.index.get(name);
      const ends = (kind) =>
        shown.filter((l) => l.kind === kind).map((l) => [at(l.one), at(l.other)]);
      this._trust = ends("trust");
      this._tunnels = ends("tunnel");
      this._hovered = -1;
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) this._settle();
    }
    this.draw();
  }

  select(name) {
    this._selected = name;
    this.draw();
  }

  zoom(factor) {
    this._zoomAt(factor, this._width / 2, this._height / 2);
  }

  fit() {
    this._isFitted = true;
    this.draw();
  }

  // Draw soon; the layout moves on with each frame until it is at rest.
  draw() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0;
      const moved = this._layout.run(FRAME_MS);
      this._paint();
      if (moved && !this._layout.isCold) this.draw();
    });
  }

  close() {
    cancelAnimationFrame(this._frame);
    this._frame = -1;
    this._watcher.disconnect();
    this._scheme.removeEventListener("change", this._redraw);
  }

  // Where a node is drawn, in CSS pixels of the canvas; for tests and the tooltip.
  placeOf(name) {
    const at = this._layout.index.get(name);
    if (at === undefined) return null;
    const { scale, x, y } = this._view;
    return [this._layout.x[at] * scale + x, this._layout.y[at] * scale + y];
  }

  _settle() {
    // Without motion: some work at once, then the finished picture.
    this._layout.run(SETTLE_MS);
    this._layout.heat = 0;
  }

  _listen() {
    const canvas = this._canvas;
    this._redraw = () => this.draw();
    this._scheme = matchMedia("(prefers-color-scheme: dark)");
    this._scheme.addEventListener("change", this._redraw);
    this._watcher = new ResizeObserver(this._redraw);
    this._watcher.observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this._press(event));
    canvas.addEventListener("pointermove", (event) => this._move(event));
    canvas.addEventListener("pointerup", (event) => this._release(event));
    canvas.addEventListener("pointercancel", () => (this._drag = null));
    canvas.addEventListener("pointerleave", () => this._hover(-1));
    canvas.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
  }

  _press(event) {
    if (event.button !== 0) return;
    this._drag = { x: event.offsetX, y: event.offsetY, moved: false };
    // A finger scrolls the page; a mouse moves the picture.
    if (event.pointerType === "mouse") this._canvas.setPointerCapture(event.pointerId);
  }

  _move(event) {
    const drag = this._drag;
    if (!drag || event.pointerType !== "mouse") {
      this._hover(this._nodeAt(event.offsetX, event.offsetY));
      return;
    }
    const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    Object.assign(drag, { x: event.offsetX, y: event.offsetY, moved: true });
    this._isFitted = false;
    this._view.x += dx;
    this._view.y += dy;
    this.draw();
  }

  _release(event) {
    const drag = this._drag;
    this._drag = null;
    if (!drag || drag.moved) return;
    const at = this._nodeAt(event.offsetX, event.offsetY);
    this._onSelect(at < 0 ? "" : this._layout.ids[at]);
  }

  _wheel(event) {
    // The plain wheel scrolls the page; pinching sets ctrlKey.
    if (!event.ctrlKey) return;
    event.preventDefault();
    this._zoomAt(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
  }

  _zoomAt(factor, x, y) {
    const view = this._view;
    const scale = Math.min(NEAREST, Math.max(FARTHEST, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    this._isFitted = false;
    this.draw();
  }

  _nodeAt(x, y) {
    const view = this._view;
    const [graphX, graphY] = [(x - view.x) / view.scale, (y - view.y) / view.scale];
    return this._layout.nearest(graphX, graphY, 14 / view.scale);
  }

  _hover(at) {
    if (at === this._hovered) return;
    this._hovered = at;
    this._canvas.classList.toggle("is-over", at >= 0);
    this._onHover(at < 0 ? null : this._nodes[at]);
    this.draw();
  }

  _fitNow() {
    if (!this._nodes.length) return;
    const { left, top, right, bottom } = this._layout.bounds();
    const space = 28;
    const [width, height] = [this._width - 2 * space, this._height - 2 * space];
    const across = Math.max(right - left, 60);
    const down = Math.max(bottom - top, 60);
    const scale = Math.min(width / across, height / down, 2.5);
    this._view = {
      scale,
      x: this._width / 2 - ((left + right) / 2) * scale,
      y: this._height / 2 - ((top + bottom) / 2) * scale,
    };
  }

  _paint() {
    const [canvas, context] = [this._canvas, this._context];
    const ratio = devicePixelRatio || 1;
    [this._width, this._height] = [canvas.clientWidth, canvas.clientHeight];
    const size = [Math.round(this._width * ratio), Math.round(this._height * ratio)];
    if (canvas.width !== size[0]) canvas.width = size[0];
    if (canvas.height !== size[1]) canvas.height = size[1];
    if (this._isFitted) this._fitNow();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this._width, this._height);
    const focus = this._focus();
    this._links(this._tunnels, colour("--graph-tunnel"), [4, 4], focus);
    this._links(this._trust, colour("--graph-trust"), [], focus);
    this._dots(focus);
    this._labels(focus);
  }

  // The node that is pointed at or selected, and its neighbours; null without one.
  _focus() {
    const selected = this._layout.index.get(this._selected) ?? -1;
    const at = this._hovered >= 0 ? this._hovered : selected;
    if (at < 0) return null;
    const near = new Set([at]);
    for (const [one, other] of [...this._trust, ...this._tunnels]) {
      if (one === at) near.add(other);
      if (other === at) near.add(one);
    }
    return { at, near };
  }

  _links(links, stroke, dash, focus) {
    const context = this._context;
    context.strokeStyle = stroke;
    context.setLineDash(dash);
    const strokeSome = (some, alpha, width) => {
      context.globalAlpha = alpha;
      context.lineWidth = width;
      context.beginPath();
      for (const [one, other] of some) {
        context.moveTo(...this._point(one));
        context.lineTo(...this._point(other));
      }
      context.stroke();
    };
    const busy = Math.min(1, 260 / (links.length + 1)) * 0.45 + 0.25;
    if (focus) {
      const isNear = ([one, other]) => one === focus.at || other === focus.at;
      strokeSome(links.filter((link) => !isNear(link)), 0.08, 1);
      strokeSome(links.filter(isNear), 1, 1.5);
    } else {
      strokeSome(links, busy, 1);
    }
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  _dots(focus) {
    const context = this._context;
    const ring = colour("--surface");
    const colours = new Map();
    this._nodes.forEach((node, at) => {
      const name = `--state-${node.state}`;
      if (!colours.has(name)) colours.set(name, colour(name));
      const [x, y] = this._point(at);
      context.globalAlpha = focus && !focus.near.has(at) ? 0.2 : 1;
      context.beginPath();
      outline(context, node.state, x, y, this._radius(at));
      context.fillStyle = colours.get(name);
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = ring;
      context.stroke();
    });
    context.globalAlpha = 1;
    if (focus) {
      const [x, y] = this._point(focus.at);
      context.beginPath();
      context.arc(x, y, this._radius(focus.at) + 3, 0, 2 * Math.PI);
      context.lineWidth = 2;
      context.strokeStyle = colour("--accent");
      context.stroke();
    }
  }

  _labels(focus) {
    const context = this._context;
    const style = getComputedStyle(document.body);
    context.font = `12px ${style.fontFamily}`;
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = 3;
    context.strokeStyle = colour("--surface");
    context.fillStyle = colour("--text");
    for (const at of this._labelled(focus)) {
      const [x, y] = this._point(at);
      const label = this._nodes[at].name.slice(0, 32);
      const left = x + this._radius(at) + 5;
      context.strokeText(label, left, y);
      context.fillText(label, left, y);
    }
  }

  _labelled(focus) {
    if (focus) return focus.near.size > LABELS ? [focus.at] : focus.near;
    const { degree } = this._layout;
    const order = [...degree.keys()].sort((a, b) => degree[b] - degree[a]);
    // Names of all that are alike would only hide the picture.
    return order.filter((at) => degree[at] >= 3 * (degree[order[LABELS]] ?? 0)).slice(0, LABELS);
  }

  _radius(at) {
    return Math.min(11, 3.5 + 0.45 * Math.sqrt(this._layout.degree[at]) + this._view.scale * 0.4);
  }

  _point(at) {
    const { scale, x, y } = this._view;
    return [this._layout.x[at] * scale + x, this._layout.y[at] * scale + y];
  }
}

// A state has a form of its own, as in lists: a colour alone does not tell it.
function outline(context, state, x, y, radius) {
  if (state === "late") {
    const half = radius * 0.9;
    context.rect(x - half, y - half, 2 * half, 2 * half);
  } else if (state === "lost") {
    const half = radius * 1.25;
    context.moveTo(x, y - half);
    for (const [dx, dy] of [[half, 0], [0, half], [-half, 0]]) context.lineTo(x + dx, y + dy);
    context.closePath();
  } else {
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
}
