// Gamepads, as the standard layout has them: sticks and buttons press what lies there. What turns, turns as far as a stick leans.

const TILT = 0.5;
const LOOSE = 0.12;

/** How far a stick leans one way, 0 to 1: what a loose one does by itself is nothing. */
export const leaning = (value, sign) => Math.max(0, (value * sign - LOOSE) / (1 - LOOSE));

export class Gamepad {
  #keys;
  #leant;
  #controls = [];
  #leans = new Map();
  #polling = null;

  /** `keys` are pressed; `leant()` is called while a stick turns something. */
  constructor(keys, leant) {
    this.#keys = keys;
    this.#leant = leant;
    addEventListener("gamepadconnected", () => this.#poll());
    document.addEventListener("visibilitychange", () => document.hidden && this.#leans.clear());
  }

  /** Another layout. */
  draw(controls) {
    this.#controls = controls;
    this.#leans.clear();
  }

  /** How far a stick leans to what turns, 0 to 1. */
  lean(name) {
    return this.#leans.get(name) ?? 0;
  }

  /** Whether one does to anything. */
  get leans() {
    return this.#leans.size > 0;
  }

  #poll() {
    this.#polling ??= requestAnimationFrame(() => {
      this.#polling = null;
      const pads = navigator.getGamepads().filter((pad) => pad?.connected);
      for (const control of this.#controls) this.#read(control, pads);
      if (this.leans) this.#leant();
      if (pads.length > 0) this.#poll();
    });
  }

  #read({ name, stick, button, axis }, pads) {
    const lean = stick ? Math.max(0, ...pads.map((pad) => leaning(pad.axes[stick[0]] ?? 0, stick[1]))) : 0;
    if (axis !== null) {
      if (lean > 0) this.#leans.set(name, lean);
      else this.#leans.delete(name);
    } else if (lean > TILT || pads.some((pad) => pad.buttons[button]?.pressed)) this.#keys.press(name, "gamepad");
    else this.#keys.release(name, "gamepad");
  }
}
