// What all pages of the monitor share: which fleet is looked at, its figures of now,
// the way to the JSON API, and links that keep the chosen fleet.

import { getJson } from "/shared/dom.js";

export class App {
  constructor(go) {
    this.go = go;
    this.fleet = "";
    this.fleets = [];
    this.alerts = [];
    this._ahead_s = 0;
    this._figures = new Map();
  }

  // Take a message of the stream.
  take({ fleets, alerts }) {
    this._figures = new Map(fleets.map((figures) => [figures.fleet, figures]));
    this.fleets = fleets.map((figures) => figures.fleet);
    this.alerts = alerts;
    if (fleets.length) this._ahead_s = fleets[0].at - Date.now() / 1000;
  }

  get figures() {
    return this._figures.get(this.fleet) ?? null;
  }

  get firing() {
    return this.alerts.filter((alert) => alert.state === "firing");
  }

  // Wall time of the monitor: that of the browser may be another.
  get now() {
    return Date.now() / 1000 + this._ahead_s;
  }

  // Ask the JSON API about the chosen fleet.
  ask(path, params = {}, options = {}) {
    const base = `/api/fleets/${encodeURIComponent(this.fleet)}/${path}`;
    return getJson(withQuery(base, params), options);
  }

  // The address of a page, with the chosen fleet if there are several.
  href(path, params = {}) {
    const fleet = this.fleets.length > 1 ? { fleet: this.fleet } : {};
    return withQuery(path, { ...params, ...fleet });
  }

  agentHref(name) {
    return this.href("/agent", { name });
  }
}

// Add parameters to an address; a list gives one for each of its values.
export function withQuery(path, params) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of [value].flat()) query.append(name, one);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

// Runs a job again and again: never twice at once, and not in a hidden tab.
export class Repeat {
  constructor(pause_ms, job) {
    this._pause_ms = pause_ms;
    this._job = job;
    this._abort = new AbortController();
    this._timer = 0;
    this._onShown = () => document.hidden || this.now();
    document.addEventListener("visibilitychange", this._onShown);
    this.now();
  }

  // Do it at once; what still runs is given up.
  async now() {
    clearTimeout(this._timer);
    this._abort.abort();
    const { signal } = (this._abort = new AbortController());
    await this._job(signal);
    if (!signal.aborted && !document.hidden) {
      this._timer = setTimeout(() => this.now(), this._pause_ms);
    }
  }

  close() {
    document.removeEventListener("visibilitychange", this._onShown);
    clearTimeout(this._timer);
    this._abort.abort();
  }
}

// A job that asks the server and says in an element what goes wrong. A request that
// was given up is nobody's concern.
export function asking(problem, job) {
  return async (signal) => {
    try {
      await job(signal);
      if (!signal.aborted) problem.textContent = "";
    } catch (error) {
      if (!signal.aborted) problem.textContent = error.message;
    }
  };
}
