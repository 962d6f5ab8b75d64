// The line of words under the picture: what was said last, what ends in so many seconds, or that the picture stands still.

import { find } from "./elements.js";
import * as words from "./words.js";

export class Line {
  #place = find("status");
  #said = ["", false];
  #ends = null;
  #still = null;

  /** Says something until the next. */
  say(text, bad = false) {
    this.#said = [text, bad];
    this.#ends = null;
    this.draw();
  }

  /** Counts down from `left` seconds; `said(seconds)` are the words. */
  count(left, said) {
    this.#ends = { at: performance.now() + left * 1000, said };
    this.draw();
  }

  /** The picture has stood still for so many seconds, said before all else; null: it moves. `seen`: there was one. */
  still(seconds, seen = true) {
    this.#still = seconds === null ? null : words.still(seconds, seen);
    this.draw();
  }

  /** What was said last. */
  get text() {
    return this.#said[0];
  }

  draw() {
    const [said, bad] = this.#said;
    const counted = this.#ends?.said(Math.max(0, Math.ceil((this.#ends.at - performance.now()) / 1000)));
    const text = this.#still ?? counted ?? said;
    this.#place.classList.toggle("bad", this.#still !== null || (bad && !this.#ends));
    if (this.#place.textContent === text) return;
    // Seconds that go by are not to be read aloud one by one.
    const bare = (one) => one.replace(/a second|\d+ \w+/g, "");
    this.#place.setAttribute("aria-live", bare(text) === bare(this.#place.textContent) ? "off" : "polite");
    this.#place.textContent = text;
  }
}
