// What a person holds down: on the keyboard, on the screen, and whatever else presses it. One list, the last pressed last.

import { drawing, make, writes } from "./elements.js";
import { said, shortcut } from "./layout.js";

/** Names that an arrow in their direction says well enough; others stand beside it. */
const PLAIN = /forward|back|up|down|left|right/i;

export class Keys {
  #changed;
  #pressed = new Map();
  #buttons = new Map();
  #codes = new Map();

  /** `changed()` is called each time that others are held. */
  constructor(changed) {
    this.#changed = changed;
    this.active = false;
    addEventListener("keydown", (event) => this.#key(event, true));
    addEventListener("keyup", (event) => this.#key(event, false));
    addEventListener("blur", () => this.releaseAll());
    document.addEventListener("visibilitychange", () => document.hidden && this.releaseAll());
  }

  /** Draws a button for each control of a layout, in `places`: {walk, look}, the crosses, and `more`, for what lies on none. */
  draw(controls, places) {
    this.releaseAll();
    this.#buttons.clear();
    this.#codes.clear();
    for (const place of Object.values(places)) place.replaceChildren();
    for (const control of controls) {
      for (const code of control.codes) this.#codes.set(code, control.name);
      places[control.pad ?? "more"].append(this.#button(control));
    }
    for (const place of Object.values(places)) place.hidden = place.children.length === 0;
  }

  #button({ name, side, codes }) {
    const by = `button ${name}`;
    const label = said(name);
    const inside = !side ? [label] : PLAIN.test(name) ? [drawing("arrow")] : [drawing("arrow"), make("small", {}, label)];
    const button = make("button", {
      type: "button", class: side, "aria-label": label, "aria-pressed": "false", title: label,
      "aria-keyshortcuts": codes.map(shortcut).join(" ") || null,
      onpointerdown: (event) => {
        event.preventDefault();
        button.setPointerCapture(event.pointerId);
        this.press(name, `pointer ${event.pointerId}`);
      },
      onpointerup: (event) => this.release(name, `pointer ${event.pointerId}`),
      onpointercancel: (event) => this.release(name, `pointer ${event.pointerId}`),
      onlostpointercapture: (event) => this.release(name, `pointer ${event.pointerId}`),
      oncontextmenu: (event) => event.preventDefault(),
      onkeydown: (event) => [" ", "Enter"].includes(event.key) && (event.preventDefault(), this.press(name, by)),
      onkeyup: (event) => [" ", "Enter"].includes(event.key) && this.release(name, by),
      onblur: () => this.release(name, by),
    }, ...inside);
    this.#buttons.set(name, button);
    return button;
  }

  #key(event, down) {
    const name = this.#codes.get(event.code);
    if (!name) return;
    if (!down) {
      this.release(name, event.code);
      return;
    }
    if (!this.active || writes(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    // On a control, Space is what it always is there.
    if (event.code === "Space" && event.target.closest?.("button, input, a, label, summary")) return;
    event.preventDefault();
    this.press(name, event.code);
  }

  /** Names of what is held, the last pressed last. */
  get held() {
    return [...this.#pressed.keys()];
  }

  press(name, by) {
    if (!this.active) return;
    const before = this.#pressed.get(name);
    if (before) before.add(by);
    else {
      this.#pressed.set(name, new Set([by]));
      this.#tell(name, true);
    }
  }

  release(name, by) {
    const who = this.#pressed.get(name);
    if (!who?.delete(by) || who.size > 0) return;
    this.#pressed.delete(name);
    this.#tell(name, false);
  }

  releaseAll() {
    for (const name of this.held) {
      this.#pressed.delete(name);
      this.#tell(name, false);
    }
  }

  #tell(name, down) {
    const button = this.#buttons.get(name);
    button?.classList.toggle("held", down);
    button?.setAttribute("aria-pressed", String(down));
    this.#changed();
  }
}
