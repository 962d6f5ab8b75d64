// From how a mouse or a finger moves to how a model looks around: steps by which it turns, or keys that are held meanwhile.

import { STEP } from "./layout.js";

/** Time in which a speed follows what moves, seconds: what a chunk is sampled with holds for all of it, so no twitch should. */
const FOLLOWS_S = 0.12;
/** Pixels a second, below which nothing moves. */
const RESTS = 20;
/** Pixels in the time of a frame that turn an axis by a step. */
const PIXELS = 12;
/** Furthest from 0 that an axis is turned: quicker than models have seen shows nothing that is any good. */
const MOST = 2 * STEP;
/** Pixels a second from which a key is held, and the share of the greater direction from which the lesser is, too. */
const HOLDS = 60;
const ASIDE = 0.4;

/** A speed, pixels a second, after something moved so many pixels in so many seconds. */
export function follow(speed, pixels, seconds) {
  const now = speed + (pixels / seconds - speed) * (1 - Math.exp(-seconds / FOLLOWS_S));
  return Math.abs(now) < RESTS ? 0 : now;
}

/** How many steps a frame this speed turns an axis by; none the other way. `fps`: of the model. */
export const steps = (speed, fps) => Math.max(0, speed / fps / PIXELS);

/** What several ways to turn an axis make together: within bounds, and of few digits. */
export const bounded = (turn) => Math.round(Math.max(-MOST, Math.min(MOST, turn)) * 1e3) / 1e3;

/** Sides to which one looks at these speeds, to the right and down. */
export function sides(across, down) {
  const found = [];
  if (Math.abs(across) > Math.max(HOLDS, ASIDE * Math.abs(down))) found.push(across > 0 ? "right" : "left");
  if (Math.abs(down) > Math.max(HOLDS, ASIDE * Math.abs(across))) found.push(down > 0 ? "down" : "up");
  return found;
}
