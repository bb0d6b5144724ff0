// Where the nodes of a graph stand: springs along links, repulsion between all nodes,
// and a weak pull to the middle. 500 nodes are 125,000 pairs a step, a few
// milliseconds, so that no tree of quadrants is needed.

const REPULSION = 900;
const SPRING_LENGTH = 42;
const GRAVITY = 0.035;
const LONELY = 4; // So many times the pull on those without a link: they stay near.
const FRICTION = 0.6;
const COOLING = 0.985;
const COLD = 0.01;
// Half the turn that makes sunflower seeds spread evenly.
const SEED_ANGLE = Math.PI * (3 - Math.sqrt(5));

export class Layout {
  // Take ids, and links as pairs of ids. Positions of known ids may be given again,
  // so that a graph that changes a little does not jump.
  constructor(ids, links, known = new Map()) {
    this.ids = ids;
    this.x = new Float64Array(ids.length);
    this.y = new Float64Array(ids.length);
    this.degree = new Uint32Array(ids.length);
    this._vx = new Float64Array(ids.length);
    this._vy = new Float64Array(ids.length);
    this.index = new Map(ids.map((id, at) => [id, at]));
    let placed = 0;
    ids.forEach((id, at) => {
      const place = known.get(id);
      placed += place ? 1 : 0;
      const radius = 16 * Math.sqrt(at + 0.5);
      this.x[at] = place ? place[0] : radius * Math.cos(at * SEED_ANGLE);
      this.y[at] = place ? place[1] : radius * Math.sin(at * SEED_ANGLE);
    });
    this._sources = new Uint32Array(links.length);
    this._targets = new Uint32Array(links.length);
    links.forEach(([one, other], at) => {
      this._sources[at] = this.index.get(one);
      this._targets[at] = this.index.get(other);
      this.degree[this._sources[at]] += 1;
      this.degree[this._targets[at]] += 1;
    });
    this.heat = ids.length && placed > ids.length / 2 ? 0.15 : 1;
  }

  get isCold() {
    return this.heat < COLD;
  }

  // Go on for some milliseconds at most; whether something moved.
  run(budget_ms) {
    const end = performance.now() + budget_ms;
    let moved = false;
    while (!this.isCold && performance.now() < end) {
      this._step();
      moved = true;
    }
    return moved;
  }

  places() {
    return new Map(this.ids.map((id, at) => [id, [this.x[at], this.y[at]]]));
  }

  bounds() {
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let at = 0; at < this.ids.length; at += 1) {
      left = Math.min(left, this.x[at]);
      right = Math.max(right, this.x[at]);
      top = Math.min(top, this.y[at]);
      bottom = Math.max(bottom, this.y[at]);
    }
    return { left, top, right, bottom };
  }

  // The node that is nearest to a point, within a distance; -1 if there is none.
  nearest(x, y, distance) {
    let [best, found] = [distance * distance, -1];
    for (let at = 0; at < this.ids.length; at += 1) {
      const apart = (this.x[at] - x) ** 2 + (this.y[at] - y) ** 2;
      if (apart < best) [best, found] = [apart, at];
    }
    return found;
  }

  _step() {
    this._repel();
    this._pull();
    const { x, y, _vx: vx, _vy: vy, degree } = this;
    for (let at = 0; at < x.length; at += 1) {
      const pull = GRAVITY * this.heat * (degree[at] ? 1 : LONELY);
      vx[at] = (vx[at] - x[at] * pull) * FRICTION;
      vy[at] = (vy[at] - y[at] * pull) * FRICTION;
      x[at] += vx[at];
      y[at] += vy[at];
    }
    this.heat *= COOLING;
  }

  _repel() {
    const { x, y, _vx: vx, _vy: vy } = this;
    const strength = REPULSION * this.heat;
    for (let one = 0; one < x.length; one += 1) {
      for (let other = one + 1; other < x.length; other += 1) {
        // Two in one place are moved apart by their order.
        const dx = x[one] - x[other] || 1e-3 * (one - other);
        const dy = y[one] - y[other] || 1e-3;
        const square = dx * dx + dy * dy;
        const force = strength / ((square + 40) * Math.sqrt(square));
        const fx = dx * force;
        const fy = dy * force;
        vx[one] += fx;
        vy[one] += fy;
        vx[other] -= fx;
        vy[other] -= fy;
      }
    }
  }

  _pull() {
    const { x, y, _vx: vx, _vy: vy, degree } = this;
    for (let link = 0; link < this._sources.length; link += 1) {
      const one = this._sources[link];
      const other = this._targets[link];
      const dx = x[other] - x[one];
      const dy = y[other] - y[one];
      const length = Math.sqrt(dx * dx + dy * dy) || 1;
      // A hub with many spokes would be thrown about by the sum of them.
      const firmness = this.heat / Math.min(degree[one], degree[other]);
      const force = ((length - SPRING_LENGTH) / length) * firmness * 0.5;
      const share = degree[one] / (degree[one] + degree[other]);
      vx[other] -= dx * force * share;
      vy[other] -= dy * force * share;
      vx[one] += dx * force * (1 - share);
      vy[one] += dy * force * (1 - share);
    }
  }
}
