// Plays fragments of an mp4 as they arrive, close behind the newest: far enough not to run dry, no further.

import { KeyTimes } from "./fragments.js";

const LOOK = 50;
const LEAST = 0.15;
const MOST = 0.4;
const JUMP = 1.2;
const KEPT = 10;
const WAITING = 512;
const LESS_THAN_A_FRAME = 0.005;

export class Player {
  #video;
  #trouble;
  #source;
  #buffer = null;
  #queue = [];
  #timer;
  #address;
  #wanted = LEAST + 0.07;
  #keyTimes = new KeyTimes();
  #keys = [];
  #closed = false;

  /**
   * @param video the element.
   * @param mime with codecs, as the server says it.
   * @param trouble called once when it cannot be played.
   */
  constructor(video, mime, trouble) {
    this.#video = video;
    this.#trouble = trouble;
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    this.#source = new Source();
    this.#address = URL.createObjectURL(this.#source);
    this.#source.addEventListener("sourceopen", () => this.#open(mime), { once: true });
    video.srcObject = null;
    video.src = this.#address;
    video.addEventListener("waiting", this.#dry);
    this.#timer = setInterval(() => this.#follow(), LOOK);
  }

  /** Whether this browser plays what the server sends. */
  static able() {
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    return Boolean(Source?.isTypeSupported('video/mp4; codecs="avc1.42E01E,opus"'));
  }

  #open(mime) {
    URL.revokeObjectURL(this.#address);
    try {
      this.#source.duration = Infinity;
      this.#buffer = this.#source.addSourceBuffer(mime);
    } catch {
      this.#fail();
      return;
    }
    this.#buffer.addEventListener("updateend", () => this.#next());
    this.#next();
  }

  /** Takes the init segment, then fragments. */
  append(data) {
    const bytes = new Uint8Array(data);
    this.#queue.push(bytes);
    this.#keys.push(...this.#keyTimes.read(bytes));
    if (this.#queue.length > WAITING) this.#fail();
    else this.#next();
  }

  #next() {
    if (this.#closed || !this.#buffer || this.#buffer.updating || this.#queue.length === 0) return;
    if (this.#source.readyState !== "open" || this.#video.error) {
      this.#fail();
      return;
    }
    try {
      if (this.#trim(KEPT)) return;
      this.#buffer.appendBuffer(joined(this.#queue));
      this.#queue = [];
    } catch (error) {
      // A whole session since its one key frame is more than this browser holds: joining again brings another one.
      if (error.name !== "QuotaExceededError" || !this.#trim(0)) this.#fail();
    }
  }

  /**
   * Drops what was shown more than `kept` seconds ago, up to a key frame: all that hangs on a dropped frame goes with it,
   * and that may be what is shown now. Returns whether it did.
   */
  #trim(kept) {
    const { buffered } = this.#buffer;
    const last = this.#keys.findLastIndex((time) => time <= this.#video.currentTime - kept);
    if (last < 0 || buffered.length === 0) return false;
    const until = this.#keys[last] - LESS_THAN_A_FRAME;
    this.#keys.splice(0, last);
    if (until <= buffered.start(0) + LESS_THAN_A_FRAME) return false;
    this.#buffer.remove(0, until);
    return true;
  }

  /** Seconds that are here and not yet shown. */
  get ahead() {
    const range = this.#newest();
    return range ? Math.max(0, range.end - this.#video.currentTime) : 0;
  }

  #newest() {
    const all = this.#buffer && this.#source.readyState === "open" ? this.#buffer.buffered : null;
    return all?.length ? { start: all.start(all.length - 1), end: all.end(all.length - 1) } : null;
  }

  #follow() {
    const range = this.#newest();
    if (!range) return;
    const { currentTime: now } = this.#video;
    const ahead = range.end - now;
    // Who joins late has a buffer that begins late; who was behind has a hole before the next key frame.
    const outside = now < range.start - 0.01;
    if ((outside && range.end - range.start > LEAST) || ahead > JUMP) {
      this.#video.currentTime = Math.max(range.start, range.end - this.#wanted);
      return;
    }
    let rate = this.#video.playbackRate;
    if (ahead > 2 * MOST) rate = 1.08;
    else if (ahead > MOST) rate = 1.03;
    else if (ahead < this.#wanted / 3) rate = 0.97;
    else if (ahead > this.#wanted / 2 && ahead < (this.#wanted + MOST) / 2) rate = 1;
    if (rate !== this.#video.playbackRate) this.#video.playbackRate = rate;
  }

  /** It ran dry: this line is less even than was thought, and wants a little more in hand. */
  #dry = () => {
    this.#wanted = Math.min(MOST, this.#wanted + 0.04);
  };

  #fail() {
    if (this.#closed) return;
    this.close();
    this.#trouble();
  }

  close() {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#video.removeEventListener("waiting", this.#dry);
    this.#video.playbackRate = 1;
    this.#video.removeAttribute("src");
    this.#video.load();
  }
}

function joined(pieces) {
  if (pieces.length === 1) return pieces[0];
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
