// A session from start to end: the queue before it, the line it comes over, and the way back when that line is lost.

import { forget, keep } from "./kept.js";
import { Player } from "./mse.js";
import { Call, NoLine } from "./rtc.js";
import { Refused, end, look, open } from "./session.js";
import { Socket } from "./socket.js";
import * as words from "./words.js";

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 8;
const GIVE_UP_S = 120;
const LOOK_MS = 2000;
/** Refusals of a call after which the WebSocket may still do. */
const NOT_BY_CALL = ["unprocessable", "unsupported_media", "failed"];
/** Refusals after which a session is no more. */
const OVER = ["not_found", "ended", "unauthorized", "forbidden"];

export class Connection {
  /** The line: Call or Socket; null while there is none. */
  line = null;
  /** {id, secret, model}: `model` is the offer that it is of. */
  session = null;
  /** `idle`, `opening`, `waiting`, `joining`, `live`, `lost`. */
  state = "idle";
  #video;
  #face;
  #only;
  #microphone = null;
  #side = null;
  #rising = null;
  #round = 0;
  #number = 0;
  #holding = null;
  #name = Math.random().toString(36).slice(2, 7);

  /**
   * @param video the element that plays.
   * @param face {status(text, bad), notice(message), changed(), playing(), joined(), chunk(message), figures(message),
   *   asked(id, event)}.
   * @param only `ws`: no call is tried.
   */
  constructor(video, face, only = null) {
    this.#video = video;
    this.#face = face;
    this.#only = only;
  }

  /** Opens a session of a model and joins it, in place of the one before. `wanted`: {prompt, seed, image}. Never raises: the face is told. */
  start(model, wanted) {
    return this.#go(async (round) => {
      const before = this.#leave();
      this.#turn("opening", words.OPENING);
      // Its place is the next one's.
      if (before) await end(before).catch(() => {});
      if (round !== this.#round) return;
      const opened = await open({ model: model.id, ...wanted });
      this.session = { id: opened.id, secret: opened.secret, model };
      if (round !== this.#round) {
        await end(this.session);
        return;
      }
      keep(this.session);
      if (opened.state === "queued") await this.#queue(round, opened);
      await this.#join(round);
    });
  }

  /** Joins a session that this tab had before it was loaded again, or waits for its place again. */
  resume(session) {
    return this.#go(async (round) => {
      this.session = session;
      const found = await look(session);
      if (found.state === "queued") await this.#queue(round, found);
      await this.#join(round);
    });
  }

  /** Ends it. */
  async stop() {
    const session = this.#finish(words.ended("stopped"), false);
    // If nobody hears this, the lease ends it.
    if (session) await end(session).catch(() => {});
  }

  async #go(work) {
    this.#round += 1;
    const round = this.#round;
    try {
      await work(round);
    } catch (error) {
      if (round !== this.#round) return;
      this.#failed(error);
    }
  }

  #failed(error) {
    const own = error instanceof Refused || error instanceof NoLine;
    if (!own) console.error(error);
    this.#finish(error instanceof Refused ? words.refused(error) : error.message, true, error.code);
  }

  #turn(state, text = null, bad = false) {
    this.state = state;
    if (text !== null) this.#face.status(text, bad);
    this.#face.changed();
  }

  /** Has no session any more; returns the one that there was. */
  #leave() {
    const { session } = this;
    this.line?.close();
    this.#side?.close();
    this.line = this.#side = this.session = null;
    forget();
    return session;
  }

  #finish(text, bad, code = null) {
    this.#round += 1;
    const session = this.#leave();
    this.#turn("idle", text, bad);
    if (code === "unauthorized") this.#face.locked();
    return session;
  }

  /**
   * Waits for a place. A socket without media keeps it: the server lets go of who does not watch. One that is lost is
   * made again; looking tells what was missed meanwhile.
   */
  async #queue(round, opened) {
    const { session } = this;
    let said = null;
    const tell = ({ position, wait_s: wait }) => {
      const text = words.waiting(position, wait);
      if (round !== this.#round || text === said) return;
      said = text;
      this.#turn("waiting", text);
    };
    tell(opened);
    let started = null;
    while (round === this.#round) {
      if (!this.#side) started = this.#wait(round, tell);
      if (await Promise.race([started, pause(LOOK_MS)])) return;
      if (round !== this.#round) return;
      const found = await look(session).catch((error) => {
        if (OVER.includes(error.code)) throw error;
        return null;
      });
      if (!found) continue;
      if (["ended", "ending"].includes(found.state)) this.#finish(words.ended(found.reason ?? "lease"), true);
      if (found.state !== "queued") return;
      tell(found);
    }
  }

  /** A socket beside the queue: true once the session has its place, never if the socket is lost before. */
  #wait(round, tell) {
    const forgotten = () => { if (this.#side === side) this.#side = null; };
    const message = (one) => {
      if (round !== this.#round) return;
      if (one.type === "session.queued") tell(one);
      else this.#message(one);
    };
    const side = new Socket(this.session, null, { message, lost: forgotten, opened: () => {} });
    this.#side = side;
    return side.connect().then(() => true, () => {
      forgotten();
      return new Promise(() => {});
    });
  }

  async #join(round, text = words.CALLING) {
    if (round !== this.#round) return;
    this.#turn("joining", text);
    const face = {
      message: (message) => round === this.#round && this.#message(message),
      lost: () => round === this.#round && this.#back(round),
      opened: () => this.#face.playing(),
    };
    let line = null;
    if (this.#only !== "ws") {
      line = new Call(this.session, this.#video, face);
      try {
        await line.connect();
      } catch (error) {
        line.close();
        line = null;
        if (!(error instanceof NoLine) && !NOT_BY_CALL.includes(error.code)) throw error;
        this.#only = "ws";
      }
    }
    if (round !== this.#round) {
      line?.close();
      return;
    }
    if (!line) {
      if (!Player.able()) throw new NoLine(words.NO_PLAYER);
      this.#face.status(this.session.model.hears ? words.OVER_SOCKET : words.CALLING, false);
      line = new Socket(this.session, this.#video, face);
      await line.connect();
    }
    if (round !== this.#round) {
      line.close();
      return;
    }
    this.line = line;
    this.#side?.close();
    this.#side = null;
    if (this.#microphone) await line.microphone(this.#microphone);
    this.#turn("live");
    this.#face.joined();
  }

  /** The line was lost: the session goes on without viewers for a while, and is joined again. */
  async #back(round) {
    if (this.state !== "live") return;
    this.line = null;
    const until = performance.now() + GIVE_UP_S * 1000;
    let wait = FIRST_WAIT_S;
    for (let attempt = 1; performance.now() < until && round === this.#round; attempt += 1) {
      this.#turn("lost", words.lost(attempt, wait), true);
      // Many pages that lose one server should not all come back at once.
      await pause(wait * (0.75 + Math.random() / 2) * 1000);
      wait = Math.min(LONGEST_WAIT_S, wait * 2);
      if (round !== this.#round) return;
      try {
        const { state, reason } = await look(this.session);
        if (["ended", "ending"].includes(state)) {
          this.#finish(words.ended(reason ?? "vanished"), true);
          return;
        }
        await this.#join(round);
        return;
      } catch (error) {
        if (round !== this.#round) return;
        if (OVER.includes(error.code)) {
          this.#finish(error.code === "not_found" ? words.GONE : words.refused(error), true, error.code);
          return;
        }
      }
    }
    if (round === this.#round) this.#finish(words.GONE, true);
  }

  #message(message) {
    if (message.type === "video.chunk_metadata") this.#face.chunk(message);
    else if (message.type === "session.figures") this.#face.figures(message);
    else if (message.type === "session.notice") this.#face.notice(message);
    else if (message.type === "session.done") this.#finish(words.ended(message.reason), message.reason === "failed");
    else if (message.type === "error") this.#face.status(words.refused({ ...message, retryAfter: message.retry_after_s }), true);
  }

  #id() {
    this.#number += 1;
    return `${this.#name}-${this.#number}`;
  }

  /** A prompt, an interruption: `event` as the protocol has it. Returns its id; null while there is no line. */
  event(event) {
    if (!this.line) return null;
    const id = this.#id();
    this.#face.asked(id, event);
    this.line.send({ type: "session.interaction", event_id: id, event });
    return id;
  }

  /** This is held now: {keys, turn}. `begins`: it is another event, and not more or less of the one before. */
  hold(held, begins) {
    if (!this.line) return;
    if (begins) this.#face.asked((this.#holding = this.#id()));
    this.line.hold(held, this.#holding);
  }

  /** The person's microphone, for this line and those that come after it. */
  async microphone(microphone) {
    this.#microphone = microphone;
    await this.line?.microphone(microphone);
  }

  /** A line that takes speech to be spoken, and a camera's pictures: data channels carry none, so a socket stands beside a call. */
  async upward() {
    if (this.line instanceof Socket) return this.line;
    if (this.#side) return this.#side;
    this.#rising ??= this.#rise(this.#round).finally(() => { this.#rising = null; });
    return this.#rising;
  }

  async #rise(round) {
    const face = { message: (message) => message.type === "error" && this.#message(message), opened: () => {}, lost: () => { this.#side = null; } };
    const side = new Socket(this.session, null, face);
    await side.connect();
    if (round === this.#round) this.#side = side;
    else side.close();
    return side;
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
