// The charts of the overview: they share one answer of the API, and one time axis.

import { TimeChart } from "/shared/charts.js";
import { h } from "/shared/dom.js";
import { bytes, decimal, integer, milliseconds, percent } from "/shared/format.js";

const rate = (value) => (value === null || value === undefined ? "–" : `${bytes(value)}/s`);

const CHARTS = [
  {
    label: "Tasks per minute",
    series: [
      { metric: "completed_per_minute", label: "completed", colour: 1, fill: true, format: decimal },
      { metric: "failed_per_minute", label: "failed", colour: "--bad", format: decimal },
    ],
  },
  {
    label: "Task time",
    series: [
      { metric: "p50_ms", label: "p50", colour: 1, format: milliseconds },
      { metric: "p95_ms", label: "p95", colour: 3, format: milliseconds },
      { metric: "p99_ms", label: "p99", colour: 2, format: milliseconds },
    ],
  },
  {
    label: "Error rate",
    top: 0.01,
    most: 1,
    series: [{ metric: "error_rate", label: "failed", colour: "--bad", fill: true, format: percent }],
  },
  {
    label: "Agents by state",
    series: [
      { metric: "agents_alive", label: "alive", colour: "--good", format: integer },
      { metric: "agents_late", label: "late", colour: "--warn", format: integer },
      { metric: "agents_lost", label: "lost", colour: "--bad", format: integer },
    ],
  },
  {
    label: "Traffic",
    series: [
      { metric: "sent_per_s", label: "sent", colour: 1, format: rate },
      { metric: "received_per_s", label: "received", colour: 3, format: rate },
    ],
  },
  {
    label: "Links and tunnels",
    series: [
      { metric: "trust_links", label: "trust links", colour: 1, format: integer },
      { metric: "tunnels", label: "tunnels", colour: 6, format: integer },
    ],
  },
  {
    label: "Trust changes",
    series: [
      { metric: "trust_linked", label: "linked", colour: "--good", format: decimal },
      { metric: "trust_revoked", label: "revoked", colour: "--bad", format: decimal },
    ],
  },
  {
    label: "Polo",
    series: [
      { metric: "polo_p50", label: "median", colour: 1, format: integer },
      { metric: "polo_p90", label: "p90", colour: 2, format: integer },
    ],
  },
];

export const METRICS = CHARTS.flatMap(({ series }) => series.map(({ metric }) => metric));

export class ChartSet {
  constructor() {
    this._charts = CHARTS.map(({ label, series, top, most }) => {
      const root = h("div", {});
      const figure = h("figure", { class: "card" }, h("figcaption", {}, h("h3", {}, label)), root);
      return { chart: new TimeChart(root, { label, series, top, most, height: 170 }), figure, series };
    });
    this.root = h("div", { class: "charts" }, this._charts.map(({ figure }) => figure));
  }

  show({ times, values }) {
    for (const { chart, series } of this._charts) {
      chart.set(times, series.map(({ metric }) => values[metric] ?? times.map(() => null)));
    }
  }

  close() {
    for (const { chart } of this._charts) chart.close();
  }
}
