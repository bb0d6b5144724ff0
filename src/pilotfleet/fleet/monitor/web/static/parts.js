// Small pieces that several pages are made of.

import { h, replace } from "/shared/dom.js";
import { ago, dateTime, timeOfDay } from "/shared/format.js";

const STATE_CLASS = { alive: "good", late: "warn", lost: "bad", left: "off" };
const TICK_MS = 1000;

/** The state of an agent: a word, and a sign that differs in colour and in form. */
export const stateOf = (state) =>
  h("span", { class: `state ${STATE_CLASS[state] ?? "off"}` }, state);

export const tagList = (tags) =>
  h("span", { class: "tags" }, tags.map((tag) => h("span", { class: "tag" }, tag)));

/** A moment: how long ago it was, and the exact time for those who point at it. */
export function moment(at, app) {
  if (!at) return h("span", { class: "muted" }, "never");
  return h(
    "time",
    { datetime: new Date(at * 1000).toISOString(), title: dateTime(at), "data-at": at },
    ago(at, app.now),
  );
}

/** The time of day of a moment, for what comes faster than "how long ago" can tell apart. */
export function clockTime(at) {
  if (!at) return h("span", { class: "muted" }, "–");
  return h("time", { datetime: new Date(at * 1000).toISOString(), title: dateTime(at) }, timeOfDay(at));
}

/** Keep all moments of the page true. */
export function tick(app) {
  setInterval(() => {
    for (const element of document.querySelectorAll("time[data-at]")) {
      const text = ago(Number(element.dataset.at), app.now);
      // The text node stays, so that a selection does.
      if (element.firstChild.data !== text) element.firstChild.data = text;
    }
  }, TICK_MS);
}

/** Names and values in two columns. */
export const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

/** A table of what is there once: heads are [text, class]. */
export const plainTable = (caption, heads, rows) =>
  h(
    "table",
    { class: "plain-table" },
    h("caption", { class: "hidden-text" }, caption),
    h("thead", {}, h("tr", {}, heads.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))),
    h("tbody", {}, rows),
  );

/** A part of a page that is drawn anew only if what it shows is other than before. */
export class Part {
  constructor(root, draw) {
    this._root = root;
    this._draw = draw;
    this._shown = "";
  }

  show(value) {
    const text = JSON.stringify(value);
    if (text === this._shown) return;
    this._shown = text;
    replace(this._root, this._draw(value));
  }
}

/** A button that is on or off. */
export const toggle = (text, { pressed, on, kind = "tag" }) =>
  h("button", { type: "button", class: kind, "aria-pressed": String(pressed), on: { click: on } }, text);

/** A card with a heading. */
export const card = (title, ...content) =>
  h("section", { class: "card" }, h("header", {}, h("h2", {}, title)), content);

export const problemLine = () => h("p", { class: "problem", role: "alert" });
