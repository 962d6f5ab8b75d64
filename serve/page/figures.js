// The figures under the picture: what is seen, in numbers.

import { find, make } from "./elements.js";

const RECENT = 9;

const NAMES = {
  fps: ["Frames a second", "pictures that were on this screen"],
  latency: ["From press to picture", "from what you do to the first picture that shows it"],
  camera: ["From camera to picture", "from a picture's being taken here to its being shown, made anew; and how many go up"],
  late: ["Late chunks", "pieces of film that the server had ready too late"],
  freezes: ["Freezes", "times when no new picture came for 0.3 s"],
  line: ["Line", "how long a message to the server and back takes, and over what it goes"],
  places: ["Places", "sessions of this model that run on the server"],
};

/** Draws the list once; returns `show({name: [value, aside]})`. */
export function list() {
  const cells = {};
  for (const [name, [said, meant]] of Object.entries(NAMES)) {
    cells[name] = make("dd", {}, "–");
    find("figures").append(make("div", { title: `${said}: ${meant}` }, make("dt", {}, said), cells[name]));
  }
  find("strip-help").textContent = `${STRIP} ${Object.values(NAMES).map((one) => `${one.join(": ")}.`).join(" ")}`;
  return (values) => {
    for (const [name, [value, aside = ""]] of Object.entries(values)) {
      cells[name].parentElement.hidden = value === null;
      if (value === null) continue;
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

/** What the list shows, from the frames that were watched, the line, the model's offer, and pictures that go up a second. */
export function values(watch, line, offer, sent = null) {
  const latency = middle(watch.controlLatencies);
  const camera = middle(watch.cameraLatencies);
  const late = watch.lateness.filter((seconds) => seconds > 0.001);
  const trip = line?.roundTrip ?? null;
  const how = line ? (line.kind === "rtc" ? "direct" : "WebSocket") : "";
  return {
    fps: line ? [watch.fps.toFixed(1), `of ${offer.fps}`] : ["–"],
    latency: latency === null ? ["–"] : [`${latency.toFixed(2)} s`, `last ${watch.controlLatencies.at(-1).toFixed(2)} s`],
    camera: offer.sees ? [camera === null ? "–" : `${camera.toFixed(2)} s`, sent === null ? "" : `${sent.toFixed(0)} a second go up`] : [null],
    late: watch.chunks ? [String(late.length), `of ${watch.chunks}${late.length ? `, worst ${Math.max(...late).toFixed(2)} s` : ""}`] : ["–"],
    freezes: watch.framesSeen ? [String(watch.freezes), watch.freezes ? `longest ${watch.longestFreeze.toFixed(1)} s` : ""] : ["–"],
    line: line ? [trip === null ? how : `${Math.round(trip * 1000)} ms`, trip === null ? "" : how] : ["–"],
    places: offer.capacity === undefined ? ["–"] : [`${offer.running} of ${offer.capacity}`, offer.waiting ? `${offer.waiting} waiting` : "taken"],
  };
}

/** What the strip shows, in words. */
const STRIP = "Dots: what you asked for. Below them: when it was taken in, and the pieces of film (chunks) that it is made "
  + "in, as they were shown. The upright line is now.";
