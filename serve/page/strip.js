// The last seconds as a strip: when something was asked for, when a chunk took it in, when it was shown.

const SPAN_S = 10;
const NARROW = { width: 420, span_s: 6 };
const AHEAD_S = 1;
const LANES = { asked: 14, entered: 38, shown: 66 };
const HEIGHT = 24;

export class Strip {
  #canvas;
  #asked = [];
  #chunks = new Map();
  #timer;
  #colours;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(canvas) {
    this.#canvas = canvas;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.#colours = { accent: colour("--accent"), quiet: colour("--quiet"), edge: colour("--edge"), text: colour("--text") };
    this.draw();
  }

  /** Draws it over and over while a session runs. */
  run(on) {
    clearInterval(this.#timer);
    if (on) this.#timer = setInterval(() => document.hidden || this.draw(), this.#calm.matches ? 1000 : 66);
    else this.draw();
  }

  clear() {
    this.#asked = [];
    this.#chunks.clear();
    this.draw();
  }

  /** Something was asked for now. */
  asked(id) {
    this.#asked.push({ id, at: performance.now() });
    if (this.#asked.length > 100) this.#asked.shift();
  }

  /** A chunk took in what was asked, `at` milliseconds of performance.now(). */
  entered(chunk, at) {
    const held = this.#chunks.get(chunk) ?? {};
    this.#keep(chunk, { ...held, entered: held.entered ?? at });
  }

  /** A chunk's first frame is on the screen: {chunk, frames, events, shown}, `fps` its pace. */
  shown({ chunk, frames, events, shown }, fps) {
    this.#keep(chunk, { ...this.#chunks.get(chunk), shown, seconds: frames / fps, events });
    const asks = events.length ? `; the last shows what you asked` : "";
    if (chunk % 4 === 0 || events.length) this.#canvas.setAttribute("aria-label", `Chunks: ${chunk + 1} shown${asks}`);
  }

  #keep(chunk, held) {
    this.#chunks.set(chunk, held);
    if (this.#chunks.size > 60) this.#chunks.delete(this.#chunks.keys().next().value);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const ratio = window.devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * ratio)) this.#canvas.width = Math.round(width * ratio);
    if (this.#canvas.height !== Math.round(height * ratio)) this.#canvas.height = Math.round(height * ratio);
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const now = performance.now();
    const span = width < NARROW.width ? NARROW.span_s : SPAN_S;
    const x = (at) => width - (width / span) * (AHEAD_S + (now - at) / 1000);
    this.#frame(pen, width, height, now, x);
    for (const [number, held] of this.#chunks) this.#chunk(pen, number, held, x);
    for (const { id, at } of this.#asked) this.#ask(pen, id, x(at), x);
  }

  #frame(pen, width, height, now, x) {
    pen.strokeStyle = this.#colours.edge;
    pen.lineWidth = 1;
    pen.beginPath();
    for (let second = 0; second < SPAN_S; second += 1) {
      const at = Math.round(x(now - second * 1000)) + 0.5;
      pen.moveTo(at, 6);
      pen.lineTo(at, height - 6);
    }
    pen.stroke();
    pen.fillStyle = this.#colours.accent;
    pen.fillRect(Math.round(x(now)), 4, 1.5, height - 8);
  }

  #chunk(pen, number, { entered, shown, seconds, events = [] }, x) {
    pen.lineWidth = 1.5;
    if (entered !== undefined) {
      const at = x(entered);
      pen.strokeStyle = pen.fillStyle = this.#colours.quiet;
      box(pen, at - 3, LANES.entered + 5, 6, 12, 3);
      pen.fill();
      if (shown !== undefined) {
        pen.beginPath();
        pen.moveTo(at, LANES.entered + 17);
        pen.lineTo(x(shown) + 4, LANES.shown);
        pen.globalAlpha = 0.5;
        pen.stroke();
        pen.globalAlpha = 1;
      }
    }
    if (shown === undefined) return;
    const [from, to] = [x(shown), x(shown + seconds * 1000)];
    if (to < 0) return;
    box(pen, from + 1, LANES.shown, to - from - 2, HEIGHT, 6);
    pen.fillStyle = events.length ? this.#colours.accent : "#2f3a47";
    pen.fill();
    pen.fillStyle = events.length ? "#1c1206" : this.#colours.quiet;
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    if (to - from > 34) pen.fillText(String(number), from + 9, LANES.shown + HEIGHT / 2 + 0.5);
  }

  #ask(pen, id, at, x) {
    if (at < 0) return;
    pen.fillStyle = pen.strokeStyle = this.#colours.accent;
    pen.beginPath();
    pen.arc(at, LANES.asked, 4, 0, 2 * Math.PI);
    pen.fill();
    // One that goes on, as a mouse that moves, is in every chunk that shows more of it.
    const first = [...this.#chunks.values()].find(({ events = [] }) => events.includes(id));
    if (!first) return;
    const to = x(first.shown);
    pen.beginPath();
    pen.moveTo(at, LANES.asked);
    pen.bezierCurveTo(at, LANES.shown - 10, to + 6, LANES.asked, to + 6, LANES.shown);
    pen.lineWidth = 1.5;
    pen.stroke();
  }
}

function box(pen, x, y, width, height, round) {
  pen.beginPath();
  pen.roundRect(x, y, Math.max(2, width), height, round);
}
