// Where the focus is, as words, and whether that can be seen.
() => {
  const element = document.activeElement;
  if (element === document.body) return null;
  const role = element.getAttribute("role") ?? element.type ?? element.tagName.toLowerCase();
  const name = element.getAttribute("aria-label") ?? element.labels?.[0]?.textContent ?? element.textContent;
  const shown = element.matches(".segments input") ? element.nextElementSibling : element;
  const { outlineStyle, outlineWidth } = getComputedStyle(shown);
  const box = shown.getBoundingClientRect();
  const isSeen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 1 && box.width > 4 && box.height > 4;
  return { stop: `${role || "a"}: ${name.trim().replace(/\s+/g, " ")}`, isSeen };
};
