// The figures under the picture: what is seen, in numbers.

import { find, make } from "./elements.js";

const RECENT = 9;

const NAMES = {
  fps: "Frames a second",
  latency: "From press to picture",
  late: "Late chunks",
  freezes: "Freezes",
  line: "Line",
  places: "Places",
};

/** Draws the list once; returns `show({name: [value, aside]})`. */
export function list() {
  const cells = {};
  for (const [name, said] of Object.entries(NAMES)) {
    cells[name] = make("dd", {}, "–");
    find("figures").append(make("div", {}, make("dt", {}, said), cells[name]));
  }
  return (values) => {
    for (const [name, [value, aside = ""]] of Object.entries(values)) {
      const text = `${value} ${aside}`;
      if (cells[name].dataset.text === text) continue;
      cells[name].dataset.text = text;
      cells[name].replaceChildren(value, ...(aside ? [" ", make("small", {}, aside)] : []));
    }
  };
}

/** The middle of the newest values; null of none. */
export function middle(values, newest = RECENT) {
  const some = values.slice(-newest).sort((a, b) => a - b);
  return some.length ? some[some.length >> 1] : null;
}

/** What the list shows, from the frames that were watched, the line, and the model's offer. */
export function values(watch, line, offer) {
  const latency = middle(watch.controlLatencies);
  const late = watch.lateness.filter((seconds) => seconds > 0.001);
  const trip = line?.roundTrip ?? null;
  const how = line ? (line.kind === "rtc" ? "direct" : "WebSocket") : "";
  return {
    fps: line ? [watch.fps.toFixed(1), `of ${offer.fps}`] : ["–"],
    latency: latency === null ? ["–"] : [`${latency.toFixed(2)} s`, `last ${watch.controlLatencies.at(-1).toFixed(2)} s`],
    late: watch.chunks ? [String(late.length), `of ${watch.chunks}${late.length ? `, worst ${Math.max(...late).toFixed(2)} s` : ""}`] : ["–"],
    freezes: watch.framesSeen ? [String(watch.freezes), watch.freezes ? `longest ${watch.longestFreeze.toFixed(1)} s` : ""] : ["–"],
    line: line ? [trip === null ? how : `${Math.round(trip * 1000)} ms`, trip === null ? "" : how] : ["–"],
    places: [`${offer.running ?? 0} of ${offer.capacity ?? "?"}`, offer.waiting ? `${offer.waiting} waiting` : "taken"],
  };
}

/** What the strip shows, in words. */
export const STRIP = "Dots: what you asked for. Below them: when it was taken in, and the pieces of film as they were shown. "
  + "The upright line is now.";
