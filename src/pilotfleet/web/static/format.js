// Numbers and times as people read them. Unknown values are a dash.

const DASH = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 12,345 */
export const integer = (value) => (isNumber(value) ? whole.format(value) : DASH);
/** 12.3K */
export const compact = (value) => (isNumber(value) ? short.format(value) : DASH);
/** 12,345, but 123K: for a number that has little room. */
export const count = (value) => (isNumber(value) && Math.abs(value) >= 100_000 ? short.format(value) : integer(value));
/** 0.123 → 12.3 % */
export const percent = (value) => (isNumber(value) ? `${(value * 100).toFixed(1)} %` : DASH);

/** A number with the digits that matter: 0.12, 3.4, 12, 1,234. */
export function decimal(value) {
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  if (size === 0 || size >= 10 || Number.isInteger(value)) return whole.format(value);
  return value.toFixed(size < 1 ? 2 : 1);
}

/** Milliseconds: 0.4 ms, 12 ms, 1.2 s, 2 min 5 s. */
export function milliseconds(value) {
  if (!isNumber(value)) return DASH;
  if (value < 1000) return `${decimal(value)} ms`;
  return value < 60_000 ? `${(value / 1000).toFixed(1)} s` : duration(value / 1000);
}

/** Seconds: 45 s, 2 min 5 s, 3 h 4 min, 5 d 6 h. */
export function duration(seconds) {
  if (!isNumber(seconds)) return DASH;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Bytes: 512 B, 1.5 KB, 20 MB. */
export function bytes(value) {
  if (!isNumber(value)) return DASH;
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

/** How long ago a moment was (unix seconds): now, 12 s ago, 3 min ago, 2 h ago, 4 d ago. */
export function ago(time, now = Date.now() / 1000) {
  if (!isNumber(time) || time <= 0) return "never";
  const s = now - time;
  if (s < 2) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

/** Date and time of a moment (unix seconds). */
export const dateTime = (time) => (isNumber(time) && time > 0 ? moment.format(time * 1000) : DASH);
/** Time of day of a moment (unix seconds). */
export const timeOfDay = (time) => (isNumber(time) && time > 0 ? clock.format(time * 1000) : DASH);
/** Day of a moment (unix seconds): 23 Nov. */
export const dayOfMonth = (time) => (isNumber(time) && time > 0 ? day.format(time * 1000) : DASH);
