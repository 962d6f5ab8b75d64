// A map of where one has been: the places of a session's pieces of film, from above, and which way one looks now.

import * as words from "./words.js";

const BOUND = 2000;
/** The map is at least so many of the longest step wide, so that the first few do not fill it. */
const STEPS = 8;
const MARGIN = 30;
/** Half of the angle that is drawn as seen, radians. */
const SEEN = Math.PI / 5;

/** Which part of the ground is drawn: {x, z, span}, the middle, and how much of it there is each way. `trail`: [x, z] each. */
export function extent(trail) {
  const middle = (way) => (Math.min(...trail.map((one) => one[way])) + Math.max(...trail.map((one) => one[way]))) / 2;
  const [x, z] = [middle(0), middle(1)];
  const far = Math.max(...trail.map((one) => Math.max(Math.abs(one[0] - x), Math.abs(one[1] - z))));
  const step = Math.max(0, ...trail.slice(1).map((one, index) => Math.hypot(one[0] - trail[index][0], one[1] - trail[index][1])));
  return { x, z, span: Math.max(2 * far, STEPS * step) || 1 };
}

export class Trail {
  #canvas;
  #shown;
  #trail = [];
  #yaw = 0;
  #colours;

  /** @param canvas to draw on; `shown(on)` is told whether there is anything. */
  constructor(canvas, shown) {
    this.#canvas = canvas;
    this.#shown = shown;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.#colours = { accent: colour("--accent"), quiet: colour("--quiet"), edge: colour("--edge") };
  }

  clear() {
    this.#trail = [];
    this.#shown(false);
  }

  /** A chunk is on the screen that was seen from [x, y, z, yaw, pitch], degrees to the right, or from nowhere that is known: null. */
  add(pose) {
    if (!pose) return;
    const [x, , z, yaw] = pose;
    this.#trail.push([x, z]);
    // Of a long way every other place is enough.
    if (this.#trail.length > BOUND) this.#trail = this.#trail.filter((_, index) => index % 2 === 0 || index === BOUND);
    this.#yaw = yaw;
    this.#shown(true);
    this.#canvas.setAttribute("aria-label", words.place(x - this.#trail[0][0], z - this.#trail[0][1]));
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (this.#trail.length === 0 || width === 0) return;
    const ratio = window.devicePixelRatio || 1;
    [this.#canvas.width, this.#canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const { x, z, span } = extent(this.#trail);
    const scale = (Math.min(width, height) - 2 * MARGIN) / span;
    // What was ahead at the beginning is at the top.
    const points = this.#trail.map((one) => [width / 2 + (one[0] - x) * scale, height / 2 - (one[1] - z) * scale]);
    this.#way(pen, points);
    this.#here(pen, points.at(-1));
  }

  #way(pen, points) {
    pen.lineWidth = 2;
    pen.lineJoin = pen.lineCap = "round";
    pen.strokeStyle = this.#colours.quiet;
    pen.beginPath();
    for (const point of points) pen.lineTo(...point);
    pen.stroke();
    pen.beginPath();
    pen.arc(...points[0], 4, 0, 2 * Math.PI);
    pen.stroke();
  }

  #here(pen, [left, top]) {
    const angle = ((this.#yaw - 90) / 180) * Math.PI;
    pen.fillStyle = this.#colours.accent;
    pen.globalAlpha = 0.3;
    pen.beginPath();
    pen.moveTo(left, top);
    pen.arc(left, top, 26, angle - SEEN, angle + SEEN);
    pen.fill();
    pen.globalAlpha = 1;
    pen.beginPath();
    pen.arc(left, top, 5, 0, 2 * Math.PI);
    pen.fill();
  }
}
