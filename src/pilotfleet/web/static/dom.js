// Elements without markup: text from outside becomes text nodes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 *   h("a", { class: "tag", href: "/", on: { click } }, "text", child, null)
 * Attributes that are null, undefined or false are left out; true is an empty one.
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "style") {
      // Property by property: the policy of the page forbids style attributes.
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Put other children into an element. */
export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** Set the text of an element, if it is another one. */
export function setText(element, text) {
  const value = String(text);
  if (element.textContent !== value) element.textContent = value;
}

/** Find an element by its id; pages rely on those they name. */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element #${id}`);
  return element;
}

/** Return a function that calls `run` once `ms` after the last of many calls. */
export function debounced(run, ms) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...args), ms);
  };
}

/** Fetch JSON. Errors have the message and the hint that the server gave. */
export async function getJson(url, { signal } = {}) {
  const answer = await fetch(url, { signal, headers: { Accept: "application/json" } }).catch((problem) => {
    throw problem.name === "AbortError" ? problem : new Error("the server does not answer");
  });
  if (answer.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  let value = null;
  try {
    value = await answer.json();
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
  }
  if (!answer.ok || value === null) {
    const error = new Error(value?.error?.message ?? `the server answered ${answer.status}`);
    error.status = answer.status;
    error.hint = value?.error?.hint;
    throw error;
  }
  return value;
}
