// The panel for walking and looking around: all that is held and turned, said to the session as one state.

import { find } from "./elements.js";
import { Gamepad } from "./gamepad.js";
import { Gaze } from "./gaze.js";
import { Keys } from "./keys.js";
import { layout } from "./layout.js";
import { bounded, follow, sides, steps } from "./look.js";
import * as words from "./words.js";

/** Between two looks at what moves: 15 a second, where a line takes 20 messages. */
const EVERY_MS = 66;
const AGAIN = "KeyR";

export class Drive {
  #connection;
  #controls = [];
  #axes = [];
  #fps = 16;
  /** To the right and down: pixels since the last look, and pixels a second. */
  #pixels = [0, 0];
  #speed = [0, 0];
  #timer = null;
  #looked = 0;
  #said = { keys: [], turn: [] };
  #keys = new Keys(() => this.#say());
  #gamepad = new Gamepad(this.#keys, () => this.#wake());
  #gaze;

  /** `held(on)`: the picture holds the mouse; `refused()`: it cannot; `again()`: the person wants to start over. */
  constructor(connection, { held, refused, again }) {
    this.#connection = connection;
    const moved = (across, down) => {
      this.#pixels = [this.#pixels[0] + across, this.#pixels[1] + down];
      this.#wake();
    };
    const holds = (on) => {
      find("gaze").setAttribute("aria-pressed", String(on));
      held(on);
    };
    this.#gaze = new Gaze(find("frame"), { moved, held: holds, refused });
    find("gaze").addEventListener("click", () => this.#gaze.hold());
    // A letter that ends a session counts only while the mouse reaches no button.
    addEventListener("keydown", ({ code, repeat }) => code === AGAIN && !repeat && this.#keys.active && this.#gaze.holds && again());
  }

  /** Another model was chosen. */
  draw({ controls, fps }) {
    this.#rest();
    [this.#controls, this.#axes, this.#fps] = [layout(controls), controls.axes, fps];
    this.#keys.draw(this.#controls, { walk: find("pad"), look: find("look-pad"), more: find("more-actions") });
    this.#gamepad.draw(this.#controls);
    find("drive").hidden = !this.drives;
    find("pads").classList.toggle("two", this.#controls.some(({ pad }) => pad === "look"));
    find("gaze").hidden = find("look-help").hidden = !this.looks;
    find("look-help").textContent = words.LOOK;
    find("drive-help").textContent = words.walking(this.looks);
  }

  /** Whether the model has anything to press or turn. */
  get drives() {
    return this.#controls.length > 0;
  }

  /** Whether a mouse looks around. */
  get looks() {
    return this.#controls.some(({ mouse }) => mouse);
  }

  /** Whether a session is `live`, and whether one runs at all: the picture keeps the mouse while one starts over. */
  enable(live, running) {
    const on = live && this.drives;
    if (!on) this.#rest();
    this.#keys.active = on;
    this.#gaze.able = on && this.looks;
    find("gaze").disabled = !on;
    if (!running) this.#gaze.leave();
  }

  /** A line is there: what is held is said on it. */
  joined() {
    this.#said = { keys: [], turn: this.#axes.map(() => 0) };
    this.#say();
  }

  press(name) {
    this.#keys.press(name, "program");
  }

  release(name) {
    this.#keys.release(name, "program");
  }

  #rest() {
    this.#pixels = this.#speed = [0, 0];
    this.#keys.releaseAll();
    this.#say();
  }

  #wake() {
    if (this.#timer !== null || !this.#keys.active) return;
    this.#looked = performance.now() - EVERY_MS;
    this.#timer = setInterval(() => this.#look(), EVERY_MS);
    this.#look();
  }

  /** How quick it is now. Where a model has keys to look with, those are held meanwhile. */
  #look() {
    const now = performance.now();
    const seconds = Math.max(1, now - this.#looked) / 1000;
    this.#looked = now;
    this.#speed = this.#speed.map((speed, way) => follow(speed, this.#pixels[way], seconds));
    this.#pixels = [0, 0];
    const seen = sides(...this.#speed);
    for (const { name, side, axis, mouse } of this.#controls) {
      if (!mouse || axis !== null) continue;
      if (seen.includes(side)) this.#keys.press(name, "mouse");
      else this.#keys.release(name, "mouse");
    }
    this.#say();
    if (this.#speed.some(Boolean) || this.#gamepad.leans) return;
    clearInterval(this.#timer);
    this.#timer = null;
  }

  /** What is held and turned now: `turn` is by how much each axis does in each frame, by keys, a stick and the mouse. */
  get #now() {
    const held = this.#keys.held;
    const turning = this.#controls.filter(({ axis }) => axis !== null);
    const [across, down] = this.#speed;
    const towards = { up: -down, down, left: -across, right: across };
    const turn = this.#axes.map(() => 0);
    for (const { name, side, axis, step } of turning) {
      turn[axis] += step * (held.includes(name) + this.#gamepad.lean(name) + steps(towards[side], this.#fps));
    }
    return { keys: held.filter((name) => !turning.some((one) => one.name === name)), turn: turn.map(bounded) };
  }

  /** Says what is another than before. What begins or ends is an event; a turn that only becomes another belongs to its own. */
  #say() {
    const now = this.#now;
    const { keys, turn } = this.#said;
    const begins = now.keys.join() !== keys.join() || now.turn.some(Boolean) !== turn.some(Boolean);
    if (!this.#keys.active || (!begins && now.turn.join() === turn.join())) return;
    this.#said = now;
    this.#connection.hold(now, begins);
  }
}
