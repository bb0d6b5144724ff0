// What a screen reader could not name, and what a keyboard could not know: controls
// without a name, pictures without words, headings that skip a level, double ids.
() => {
  const bad = [];
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility() && !e.closest("[aria-hidden=true]"));
  const nameOf = (e) =>
    e.getAttribute("aria-label") ||
    (e.getAttribute("aria-labelledby") && document.getElementById(e.getAttribute("aria-labelledby"))?.textContent) ||
    [...(e.labels ?? [])].map((label) => label.textContent).join("") ||
    e.textContent.trim() || e.getAttribute("alt") || e.title;
  for (const e of shown("a, button, input, select, [role=grid], [role=region], nav, canvas")) {
    if (!nameOf(e)) bad.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  }
  for (const e of shown("img")) if (!e.hasAttribute("alt")) bad.push("img without alt");
  if (document.querySelectorAll("h1").length !== 1) bad.push("not one h1");
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3")) {
    const own = Number(e.tagName[1]);
    if (own > level + 1) bad.push(`heading skips: ${e.textContent}`);
    level = own;
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((one) => one === id).length > 1) bad.push(`id twice: ${id}`);
  for (const tag of ["header", "main", "nav", "footer"]) if (!document.querySelector(tag)) bad.push(`no ${tag}`);
  return bad;
};
