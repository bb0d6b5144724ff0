// Charts in the colours of the theme, each with words for those who cannot see it.

import uPlot from "./uplot/uPlot.esm.js";
import { h, replace, setText } from "./dom.js";
import { dayOfMonth, decimal, timeOfDay } from "./format.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
// With colours of the user there are few: lines differ by their dashes.
const forced = matchMedia("(forced-colors: active)");
const DASHES = [[], [8, 4], [2, 4]];
const MARKERS = ["solid", "dashed", "dotted"];
const SHORT_S = 240; // Ticks of less have seconds, so the last one needs more room.

/** The value of a custom property of base.css. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * Lines over time, in `root`. Needs /shared/uplot/uPlot.min.css in the page.
 *
 * options:
 *   label   what is shown, for screen readers
 *   series  [{ label, colour: 1…6 | "--bad", format(value) → text, fill: true, dash: [4, 4] }]
 *   height  pixels
 *   top     the least that the axis reaches up to (default 1)
 *   most    what it never goes beyond
 *
 *   chart.set(times, [values, …])   unix seconds; null where nothing is known
 */
export class TimeChart {
  constructor(root, options) {
    this.options = options;
    this.root = root;
    this.height = options.height ?? 160;
    this.plot = h("div", { class: "plot", "aria-hidden": "true" });
    this.words = h("p", { class: "hidden-text" });
    this.blank = h("p", { class: "empty" }, "Nothing yet.");
    root.classList.add("chart");
    replace(root, this.blank, this.plot, this.words);
    this.plot.hidden = true;
    this.watcher = new ResizeObserver(() => this._resize());
    this.watcher.observe(root);
    this.repaint = () => this.chart?.redraw(false);
    dark.addEventListener("change", this.repaint);
  }

  /** Give up what lives longer than the element: for pages that change their content. */
  close() {
    this.watcher.disconnect();
    dark.removeEventListener("change", this.repaint);
    this.chart?.destroy();
  }

  /** Show other values. */
  set(times, values) {
    // Of one moment there is no line, and uPlot shows no time axis.
    const isEmpty = times.length < 2;
    this.blank.hidden = !isEmpty;
    this.plot.hidden = isEmpty;
    if (!isEmpty) {
      if (this.chart) this.chart.setData([times, ...values]);
      else this._make([times, ...values]);
      this._tellLast();
    }
    setText(this.words, this._describe(times, values));
  }

  _make(data) {
    const { series, top = 1, most = Infinity } = this.options;
    const first = series[0].format ?? decimal;
    const axis = {
      stroke: () => colour("--muted"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
    };
    this.chart = new uPlot(
      {
        width: this._width(),
        height: this.height,
        padding: [8, (chart) => (span(chart) < SHORT_S ? 28 : 16), 0, 0],
        cursor: { y: false, drag: { x: false, y: false } },
        legend: { live: true, ...(forced.matches && { markers: { dash: (_, at) => MARKERS[(at - 1) % 3] } }) },
        hooks: { setCursor: [() => this._tellLast()] },
        scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.min(most, niceTop(Math.max(high ?? 0, top)))] } },
        axes: [
          { ...axis, values: timeTicks, space: 64, size: 24 },
          { ...axis, values: (_, ticks) => valueTicks(ticks, first), size: 56, space: 28 },
        ],
        series: [
          { label: "at", value: (_, time) => timeOfDay(time), class: "u-at" },
          ...series.map((one, index) => this._series(one, index)),
        ],
      },
      data,
      this.plot,
    );
  }

  /** What the legend says while nobody points at a moment: the values of now. */
  _tellLast() {
    const chart = this.chart;
    if (chart && (chart.cursor.idx ?? null) === null) chart.setLegend({ idxs: chart.data.map(lastKnown) }, false);
  }

  _series(one, index) {
    const name = typeof one.colour === "string" ? one.colour : `--series-${one.colour ?? index + 1}`;
    const format = one.format ?? decimal;
    return {
      label: one.label,
      stroke: () => colour(name),
      fill: one.fill ? () => `color-mix(in srgb, ${colour(name)} 14%, transparent)` : undefined,
      width: 1.75,
      dash: forced.matches ? DASHES[index % 3] : one.dash,
      // A line through one point is nothing.
      points: { show: true, size: 4, filter: (chart, index) => lonely(chart.data[index]) },
      spanGaps: false,
      value: (_, value) => format(value),
    };
  }

  _width() {
    return Math.max(120, Math.floor(this.root.clientWidth));
  }

  _resize() {
    const width = this._width();
    if (this.chart && width !== this.chart.width) this.chart.setSize({ width, height: this.height });
  }

  _describe(times, values) {
    if (times.length === 0) return `${this.options.label}: nothing yet`;
    const parts = this.options.series.map((one, index) => {
      const format = one.format ?? decimal;
      const known = values[index].filter((value) => value !== null && value !== undefined);
      if (known.length === 0) return `${one.label}: unknown`;
      const low = known.reduce((a, b) => Math.min(a, b));
      const high = known.reduce((a, b) => Math.max(a, b));
      return `${one.label}: last ${format(known.at(-1))}, lowest ${format(low)}, highest ${format(high)}`;
    });
    return `${this.options.label}, ${timeOfDay(times[0])} to ${timeOfDay(times.at(-1))}. ${parts.join(". ")}.`;
  }
}

/** Where the last value is, if it is not long ago: the very last may come a little late. */
function lastKnown(values) {
  const end = values.length - 1;
  for (let at = end; at >= Math.max(0, end - 5); at -= 1) if ((values[at] ?? null) !== null) return at;
  return end;
}

/** Where values are that have nothing on either side. */
function lonely(values) {
  const isKnown = (at) => (values[at] ?? null) !== null;
  return [...values.keys()].filter((at) => isKnown(at) && !isKnown(at - 1) && !isKnown(at + 1));
}

/** The seconds that are shown; a chart that is being made has no data yet. */
const span = ({ data }) => (data?.[0]?.length ? data[0].at(-1) - data[0][0] : Infinity);

/** Days where a step is a day or more, else the time of day; with seconds where two ticks would read the same. */
function timeTicks(_, ticks, __, ___, step_s) {
  const end = step_s < 60 ? 8 : 5;
  return ticks.map((time) => (step_s >= 86_400 ? dayOfMonth(time) : timeOfDay(time).slice(0, end)));
}

/** What values are called at the axis: 10 %, where the figure is 10.0 %. */
function valueTicks(ticks, format) {
  const texts = ticks.map((value) => format(value));
  const isRound = texts.every((text) => !/\.\d*[1-9]/.test(text));
  return isRound ? texts.map((text) => text.replace(/\.0+(?!\d)/, "")) : texts;
}

/** The next round number: 1, 2, 5, 10, 20 … */
function niceTop(value) {
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * step).find((top) => top >= value * 1.02) ?? 20 * step;
}

/**
 * A histogram as bars, with a table for screen readers.
 *   drawBars(root, { label, bins: [[from, to, count], …], format, noun: "agents" })
 */
export function drawBars(root, { label, bins, format = decimal, noun = "" }) {
  const most = bins.reduce((top, bin) => Math.max(top, bin[2]), 0);
  if (most === 0) {
    replace(root, h("p", { class: "muted small" }, "Nothing yet."));
    return;
  }
  const name = ([from, to]) => (from === to ? format(from) : `${format(from)} to ${format(to)}`);
  const bars = bins.map((bin) => {
    const bar = h("div", { class: bin[2] ? "bar-column" : "bar-column zero", title: `${name(bin)}: ${format(bin[2])} ${noun}` });
    // Few are still seen beside many.
    bar.style.setProperty("height", bin[2] ? `${Math.max(3, (bin[2] / most) * 100)}%` : "0");
    return bar;
  });
  const rows = bins.map((bin) => h("tr", {}, h("th", { scope: "row" }, name(bin)), h("td", {}, format(bin[2]))));
  replace(
    root,
    h("div", { class: "bars", "aria-hidden": "true" }, bars),
    h(
      "div",
      { class: "bars-axis", "aria-hidden": "true" },
      h("span", {}, format(bins[0][0])),
      h("span", {}, format(bins.at(-1)[1])),
    ),
    h("div", { class: "hidden-text" }, h("table", {}, h("caption", {}, label), h("tbody", {}, rows))),
  );
}
