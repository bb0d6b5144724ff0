// What fires, what waits to fire, and what was resolved lately.

import { h, replace } from "/shared/dom.js";
import { dateTime, decimal } from "/shared/format.js";
import { moment, Part } from "./parts.js";

const GROUPS = [
  ["firing", "Firing", "Nothing fires."],
  ["pending", "Pending", "Nothing is about to fire."],
  ["resolved", "Resolved", "Nothing was resolved lately."],
];
const STATE_CLASS = { critical: "bad", warning: "warn", info: "off" };

export class AlertsPage {
  constructor(main, app) {
    this._app = app;
    const root = h("div", { class: "stack" });
    this._part = new Part(root, (alerts) => this._draw(alerts));
    replace(main, h("h1", {}, "Alerts"), root);
  }

  update() {
    this._part.show(this._app.alerts);
  }

  close() {}

  _draw(alerts) {
    return GROUPS.map(([state, title, none]) => {
      const some = alerts.filter((alert) => alert.state === state);
      const list = some.length
        ? h("ul", { class: "alerts" }, some.map((alert) => this._row(alert)))
        : h("p", { class: "muted" }, none);
      return h("section", { class: "card" }, h("header", {}, h("h2", {}, title)), list);
    });
  }

  _row(alert) {
    const { rule, severity, fleet, subject, value, summary, since, resolved_at: end } = alert;
    const about = [fleet, subject].filter(Boolean).join(" · ");
    return h(
      "li",
      {},
      h("span", { class: `state ${STATE_CLASS[severity] ?? "off"}` }, severity),
      h(
        "div",
        { class: "alert-text" },
        h("p", {}, h("b", {}, rule), " ", h("span", { class: "muted" }, about)),
        summary ? h("p", {}, summary) : null,
        value === null ? null : h("p", { class: "muted small" }, `value ${decimal(value)}`),
      ),
      h(
        "div",
        { class: "alert-time" },
        h("p", {}, end === null ? "began " : "ended ", moment(end ?? since, this._app)),
        h("p", { class: "muted small" }, dateTime(end ?? since)),
      ),
    );
  }
}
