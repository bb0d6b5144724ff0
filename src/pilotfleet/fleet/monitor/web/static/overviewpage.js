// The first page: the five figures, what fires, and charts over time.

import { h, replace } from "/shared/dom.js";
import { asking, Repeat } from "./app.js";
import { ChartSet, METRICS } from "./chartset.js";
import { Part, problemLine } from "./parts.js";
import { Strip, Tiles } from "./tiles.js";

const RANGES = [
  ["15 min", 900, 3_000],
  ["1 h", 3_600, 10_000],
  ["6 h", 21_600, 30_000],
  ["24 h", 86_400, 60_000],
  ["7 d", 604_800, 60_000],
];
const POINTS = 900;

export class OverviewPage {
  constructor(main, app) {
    this._app = app;
    this._tiles = new Tiles(app);
    this._strip = new Strip();
    this._charts = new ChartSet();
    this._problem = problemLine();
    const notes = h("div", { class: "notes" });
    this._notes = new Part(notes, (state) => this._drawNotes(state));
    const asked = Number(new URLSearchParams(location.search).get("range"));
    this._range = RANGES.find(([, seconds]) => seconds === asked) ?? RANGES[0];
    replace(
      main,
      h("h1", { class: "hidden-text" }, `Fleet ${app.fleet}`),
      notes,
      this._tiles.root,
      this._strip.root,
      h("div", { class: "section-head" }, h("h2", {}, "Over time"), this._makeRanges()),
      this._problem,
      this._charts.root,
    );
    this._read();
  }

  update() {
    const { figures, firing, fleet } = this._app;
    if (!figures) return;
    this._tiles.show(figures);
    this._strip.show(figures);
    const alerts = firing.filter((alert) => !alert.fleet || alert.fleet === fleet);
    this._notes.show({
      following: figures.following,
      alerts: alerts.map(({ severity, rule, subject, summary }) => ({ severity, rule, subject, summary })),
    });
  }

  close() {
    this._repeat?.close();
    this._charts.close();
  }

  _read() {
    this._repeat?.close();
    const [, range, pause_ms] = this._range;
    const job = asking(this._problem, async (signal) => {
      const params = { metric: METRICS, range, points: POINTS };
      const series = await this._app.ask("series", params, { signal });
      if (!signal.aborted) this._charts.show(series);
    });
    this._repeat = new Repeat(pause_ms, job);
  }

  _makeRanges() {
    const choices = RANGES.map((range) => {
      const [text, seconds] = range;
      const input = h("input", {
        type: "radio",
        name: "range",
        value: seconds,
        checked: range === this._range,
        on: { change: () => this._choose(range) },
      });
      return h("label", {}, input, h("span", {}, text));
    });
    return h("fieldset", { class: "segments" }, h("legend", { class: "hidden-text" }, "Time shown"), choices);
  }

  _choose(range) {
    this._range = range;
    history.replaceState(null, "", this._app.href("/", { range: range[1] }));
    this._read();
  }

  _drawNotes({ following, alerts }) {
    const notes = alerts.map(({ severity, rule, subject, summary }) =>
      h(
        "p",
        { class: `note ${severity}` },
        h("b", {}, subject ? `${rule} (${subject})` : rule),
        ` ${summary} `,
        h("a", { href: this._app.href("/alerts") }, "Alerts"),
      ),
    );
    if (!following) {
      notes.unshift(
        h("p", { class: "note warning" }, h("b", {}, "No broker is heard."), " The figures are those of before."),
      );
    }
    return notes;
  }
}
