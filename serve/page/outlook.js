// What a page may do while it has no session: begin one, wait in line, or nothing, and why.

import { models, readiness } from "./session.js";
import * as words from "./words.js";

const COUNTED = ["running", "capacity", "waiting", "gone"];

/** Whether all places of a model are taken, or others wait for one already. */
export const full = ({ running = 0, capacity = 1, waiting = 0 }) => running >= capacity || waiting > 0;

/** What the button that begins a session says; `kept`: there is one of before. */
export function beginning(offer, kept) {
  if (kept) return "Go on";
  return offer && !offer.gone && full(offer) ? "Wait in line" : "Start";
}

export class Outlook {
  /** What is offered, as it stood when it was last looked at. */
  offers = [];
  /** Why the server did not answer, or refused to; null: it did. */
  error = null;
  #known = false;
  #ready = {};
  #asking = null;

  /** Looks at the server; returns whether other models are offered than before. `idle`: whether it takes anybody matters. */
  look(idle) {
    this.#asking ??= this.#look(idle).finally(() => { this.#asking = null; });
    return this.#asking;
  }

  async #look(idle) {
    let found;
    try {
      [found, this.#ready] = await Promise.all([models(), idle ? readiness() : {}]);
    } catch (error) {
      this.error = error;
      for (const offer of this.offers) this.counted(offer, {});
      return false;
    }
    this.error = null;
    this.#known = true;
    if (idle && found.map(({ id }) => id).join() !== this.offers.map(({ id }) => id).join()) {
      this.offers = found;
      return true;
    }
    for (const now of found) this.counted(this.offers.find(({ id }) => id === now.id) ?? {}, now);
    return false;
  }

  /** Puts what changes with time into an offer. */
  counted(offer, now = this.offers.find(({ id }) => id === offer.id) ?? {}) {
    for (const name of COUNTED) offer[name] = now[name];
  }

  /** Why nobody can begin with a model now: {text, bad}; null: one can. */
  trouble(offer) {
    const { error } = this;
    if (error) {
      const gone = this.#known && error.code === "unreachable";
      return { text: gone ? words.SERVER_GONE : words.refused(error), bad: true };
    }
    if (this.#ready.reasons?.includes(words.ENDING)) return { text: words.refused({ code: "draining" }), bad: true };
    if (this.offers.length === 0) return { text: words.LOADING, bad: false };
    return offer?.gone ? { text: words.MODEL_GONE, bad: true } : null;
  }
}
