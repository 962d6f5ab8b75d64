// Elements of the page, made and found. Nothing here or elsewhere turns text into markup: the policy of the page forbids it.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id; the page is broken without it, and says which. */
export function find(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/**
 * A new element. `given` holds attributes; `class`, `aria-...` and the like by their names in HTML, `onclick` and other
 * functions as listeners, false and null left out.
 */
export function make(tag, given = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
}

/** One of the drawings that index.html holds as symbols. */
export function drawing(name, box = "0 0 24 24") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", box);
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#${name}`);
  svg.append(use);
  return svg;
}

/** Whether keys that are pressed there belong to a field that a person writes or chooses in. */
export function writes(target) {
  return target instanceof Element && target.closest("input:not([type=checkbox]):not([type=file]), textarea, select") !== null;
}
