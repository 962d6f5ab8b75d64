// What a person holds down: on the keyboard, on the screen, on a gamepad. One list, the last pressed last.

import { drawing, make, writes } from "./elements.js";

const DIRECTIONS = [
  { names: ["forward", "up"], place: "up", keys: ["ArrowUp", "KeyW"], said: "ArrowUp W", button: 12, axis: 1, sign: -1 },
  { names: ["left"], place: "left", keys: ["ArrowLeft", "KeyA"], said: "ArrowLeft A", button: 14, axis: 0, sign: -1 },
  { names: ["back", "backward", "down"], place: "down", keys: ["ArrowDown", "KeyS"], said: "ArrowDown S", button: 13, axis: 1, sign: 1 },
  { names: ["right"], place: "right", keys: ["ArrowRight", "KeyD"], said: "ArrowRight D", button: 15, axis: 0, sign: 1 },
];
const TILT = 0.5;

export class Keys {
  #changed;
  #pressed = new Map();
  #buttons = new Map();
  #codes = new Map();
  #pads = [];
  #polling = null;

  /** `changed(held)` gets the list of held actions each time it is another one. */
  constructor(changed) {
    this.#changed = changed;
    this.active = false;
    addEventListener("keydown", (event) => this.#key(event, true));
    addEventListener("keyup", (event) => this.#key(event, false));
    addEventListener("blur", () => this.releaseAll());
    document.addEventListener("visibilitychange", () => document.hidden && this.releaseAll());
    addEventListener("gamepadconnected", () => this.#poll());
  }

  /** Draws buttons for an offer's actions: known directions on a cross in `pad`, others in `more`. */
  draw(actions, pad, more) {
    this.releaseAll();
    this.#buttons.clear();
    this.#codes.clear();
    this.#pads = [];
    const free = actions.slice(1); // the first stands for none
    const cross = DIRECTIONS.flatMap((direction) => {
      const action = free.find((name) => direction.names.includes(name.toLowerCase()));
      if (!action) return [];
      free.splice(free.indexOf(action), 1);
      for (const code of direction.keys) this.#codes.set(code, action);
      this.#pads.push({ ...direction, action });
      return [this.#button(action, drawing("arrow"), { class: direction.place, "aria-keyshortcuts": direction.said })];
    });
    const others = free.map((action, index) => {
      if (index < 9) this.#codes.set(`Digit${index + 1}`, action);
      const shortcut = index < 9 ? { "aria-keyshortcuts": String(index + 1) } : {};
      return this.#button(action, action, shortcut);
    });
    pad.replaceChildren(...cross);
    more.replaceChildren(...others);
    pad.hidden = cross.length === 0;
    more.hidden = others.length === 0;
  }

  #button(action, inside, given) {
    const by = `button ${action}`;
    const button = make("button", {
      type: "button", "aria-label": action, "aria-pressed": "false", ...given,
      onpointerdown: (event) => {
        event.preventDefault();
        button.setPointerCapture(event.pointerId);
        this.press(action, `pointer ${event.pointerId}`);
      },
      onpointerup: (event) => this.release(action, `pointer ${event.pointerId}`),
      onpointercancel: (event) => this.release(action, `pointer ${event.pointerId}`),
      onlostpointercapture: (event) => this.release(action, `pointer ${event.pointerId}`),
      oncontextmenu: (event) => event.preventDefault(),
      onkeydown: (event) => [" ", "Enter"].includes(event.key) && (event.preventDefault(), this.press(action, by)),
      onkeyup: (event) => [" ", "Enter"].includes(event.key) && this.release(action, by),
      onblur: () => this.release(action, by),
    }, inside);
    this.#buttons.set(action, button);
    return button;
  }

  #key(event, down) {
    const action = this.#codes.get(event.code);
    if (!action) return;
    if (!down) {
      this.release(action, event.code);
      return;
    }
    if (!this.active || writes(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.press(action, event.code);
  }

  #poll() {
    this.#polling ??= requestAnimationFrame(() => {
      this.#polling = null;
      const pads = navigator.getGamepads().filter((pad) => pad?.connected);
      for (const { action, button, axis, sign } of this.#pads) {
        const down = pads.some((pad) => pad.buttons[button]?.pressed || (pad.axes[axis] ?? 0) * sign > TILT);
        if (down && this.active) this.press(action, "gamepad");
        else this.release(action, "gamepad");
      }
      if (pads.length > 0) this.#poll();
    });
  }

  /** Actions that are held, the last pressed last. */
  get held() {
    return [...this.#pressed.keys()];
  }

  press(action, by) {
    if (!this.active) return;
    const before = this.#pressed.get(action);
    if (before) before.add(by);
    else {
      this.#pressed.set(action, new Set([by]));
      this.#tell(action, true);
    }
  }

  release(action, by) {
    const who = this.#pressed.get(action);
    if (!who?.delete(by) || who.size > 0) return;
    this.#pressed.delete(action);
    this.#tell(action, false);
  }

  releaseAll() {
    for (const action of this.held) {
      this.#pressed.delete(action);
      this.#tell(action, false);
    }
  }

  #tell(action, down) {
    const button = this.#buttons.get(action);
    button?.classList.toggle("held", down);
    button?.setAttribute("aria-pressed", String(down));
    this.#changed(this.held);
  }
}
