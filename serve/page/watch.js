// What a person sees, measured: when each frame came onto the screen, and which was the first to show what was asked.

const FREEZE_S = 0.3;
const BOUND = 4000;
const RECENT_S = 2;
const VIDEO_RATE = 90_000;
const WRAP = 2 ** 32;
const MATCHES = 15;

/** Keeps the newest of a list that may grow for hours. */
function bounded(list, one) {
  list.push(one);
  if (list.length > BOUND) list.splice(0, BOUND / 4);
}

export class Watch {
  #video;
  #handle = null;
  #asked = new Map();
  #filmed = new Set();
  #open = [];
  #offsets = [];
  #unmatched = [];
  #arrivals = new Map();
  #presented = 0;
  #last = null;
  #since = performance.now();

  /** `frame(time)` is called with each frame, milliseconds of performance.now(); `seen({chunk, shown, events, pose})` with each chunk. */
  constructor(video, { frame, seen }) {
    this.#video = video;
    this.frame = frame;
    this.seen = seen;
    this.reset();
    this.#next();
  }

  /** A new session begins: all counts from nothing. */
  reset() {
    this.frames = [];
    this.controlLatencies = [];
    this.cameraLatencies = [];
    this.serverLatencies = [];
    this.lateness = [];
    this.chunks = 0;
    this.framesSeen = 0;
    this.freezes = 0;
    this.longestFreeze = 0;
    this.#asked.clear();
    this.#filmed.clear();
    this.#arrivals.clear();
    this.again();
  }

  /** The same session over a new line: its times have another origin, and the gap is no freeze. */
  again() {
    this.#open = [];
    this.#offsets = [];
    this.#unmatched = [];
    this.#last = null;
    this.looking();
  }

  /** The page is looked at from now on: browsers show no frames to nobody. */
  looking() {
    this.#since = performance.now();
  }

  /** Seconds since a frame was on the screen, or since one could be. */
  get waited() {
    if (!("requestVideoFrameCallback" in this.#video)) return 0;
    return Math.max(0, performance.now() - Math.max(this.#last ?? 0, this.#since)) / 1000;
  }

  /** Something was asked for now, under this id. */
  asked(id) {
    this.#asked.set(id, performance.now());
    if (this.#asked.size > 200) this.#asked.delete(this.#asked.keys().next().value);
  }

  /** A picture went up that was taken at so many seconds of performance.now(). */
  filmed(at) {
    this.#filmed.add(at);
    if (this.#filmed.size > 300) this.#filmed.delete(this.#filmed.values().next().value);
  }

  /** `video.chunk_metadata` came: the chunk's first frame is next. */
  chunk(message) {
    const { chunk, frames, events = [], pts_s: start, latency_s: latency, late_s: late, camera = null, at: pose = null } = message;
    const now = performance.now();
    this.chunks += 1;
    bounded(this.lateness, late ?? 0);
    if (latency !== null && latency !== undefined) bounded(this.serverLatencies, latency);
    const entry = { chunk, frames, events, start, camera, pose, at: now };
    this.#open.push(entry);
    this.#unmatched.push(entry);
    this.#arrivals.set(chunk, now);
    if (this.#arrivals.size > 60) this.#arrivals.delete(this.#arrivals.keys().next().value);
    if (this.#open.length > 50) this.#open.shift();
    if (this.#unmatched.length > 4) this.#unmatched.shift();
  }

  /** When a chunk's message came, milliseconds of performance.now(); null: it did not, or long ago. */
  arrived(chunk) {
    return this.#arrivals.get(chunk) ?? null;
  }

  #next() {
    if (!("requestVideoFrameCallback" in this.#video)) return;
    this.#handle = this.#video.requestVideoFrameCallback((now, about) => {
      this.#frame(now, about);
      this.#next();
    });
  }

  #frame(now, about) {
    // A page that was busy hears of a frame late, or of two as one: the count of presented frames has them all.
    const steps = about.presentedFrames - this.#presented;
    this.framesSeen += steps > 0 && this.#presented > 0 && steps < 100 ? steps : 1;
    this.#presented = about.presentedFrames;
    const at = about.expectedDisplayTime ?? now;
    if (this.#last !== null && at - this.#last > FREEZE_S * 1000) {
      this.freezes += 1;
      this.longestFreeze = Math.max(this.longestFreeze, (at - this.#last) / 1000);
    }
    this.#last = at;
    const time = this.#time(about);
    bounded(this.frames, { t: at, mediaTime: time ?? about.mediaTime });
    this.#match(time, at);
    this.frame(at);
  }

  /** A frame's time since the session's start, seconds; null while that is not known. */
  #time({ rtpTimestamp, receiveTime, mediaTime }) {
    if (this.#video.srcObject === null) return mediaTime;
    if (rtpTimestamp === undefined) return null;
    // RTP counts from a random origin (RFC 3550, 5.1). The first frame that arrived after a chunk's message is the
    // chunk's first: the middle of what such pairs say is right even when single messages were late.
    const before = this.#unmatched.findLastIndex(({ at }) => at <= (receiveTime ?? performance.now()) + 5);
    if (before >= 0) {
      const { start } = this.#unmatched[before];
      this.#unmatched.splice(0, before + 1);
      this.#offsets.push((((rtpTimestamp - start * VIDEO_RATE) % WRAP) + WRAP) % WRAP);
      if (this.#offsets.length > MATCHES) this.#offsets.shift();
    }
    if (this.#offsets.length === 0) return null;
    const origin = [...this.#offsets].sort((a, b) => a - b)[this.#offsets.length >> 1];
    return ((((rtpTimestamp - origin) % WRAP) + WRAP) % WRAP) / VIDEO_RATE;
  }

  #match(time, at) {
    const slack = 0.01;
    while (this.#open.length > 0) {
      const entry = this.#open[0];
      const here = time === null ? entry.at <= at : time < WRAP / VIDEO_RATE / 2 && entry.start <= time + slack;
      if (!here) return;
      this.#open.shift();
      for (const id of entry.events) {
        const since = this.#asked.get(id);
        if (since === undefined) continue;
        this.#asked.delete(id);
        bounded(this.controlLatencies, (at - since) / 1000);
      }
      // Another page's camera has a clock of its own.
      const { camera } = entry;
      if (camera && this.#filmed.has(camera.at)) bounded(this.cameraLatencies, at / 1000 + camera.after_s - camera.at);
      this.seen({ ...entry, shown: at });
    }
  }

  /** Frames a second over the last two seconds, as seen. */
  get fps() {
    const since = performance.now() - RECENT_S * 1000;
    const recent = this.frames.filter(({ t }) => t > since).length;
    return recent / RECENT_S;
  }

  /** Longest gap in what is seen now, seconds: still growing while nothing comes. */
  get still() {
    return this.#last === null ? 0 : Math.max(0, performance.now() - this.#last) / 1000;
  }
}
