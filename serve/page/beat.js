// Whether the other end is there: a ping each second, and patience with its answers.

const EVERY = 1000;
const PATIENCE = 5000;

export class Beat {
  #send;
  #lost;
  #heard = performance.now();
  #timer;

  /** `send(message)` sends a ping, `lost()` is called once when nothing came back for five seconds. */
  constructor(send, lost) {
    this.#send = send;
    this.#lost = lost;
    /** Round trip of the last ping, seconds; null before the first. */
    this.roundTrip = null;
    this.#timer = setInterval(() => this.#tick(), EVERY);
    this.#tick();
  }

  #tick() {
    const now = performance.now();
    // Timers of a hidden page sleep for a minute at a time: what was not asked was not left unanswered either.
    if (now - (this.asked ?? now) > 3 * EVERY) this.#heard = now;
    this.asked = now;
    if (now - this.#heard > PATIENCE) {
      this.stop();
      this.#lost();
      return;
    }
    this.#send({ type: "session.ping", t: now });
  }

  /** A `session.pong` came. */
  pong({ t }) {
    this.#heard = performance.now();
    if (typeof t === "number") this.roundTrip = (this.#heard - t) / 1000;
  }

  /** Something else came: the other end is there, busy as it may be. */
  heard() {
    this.#heard = performance.now();
  }

  stop() {
    clearInterval(this.#timer);
  }
}
