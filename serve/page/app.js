// The page: what the server offers, one session at a time, and all that a person can do in it.
//
// For measurements, `window.everframe` is
//   transport   `rtc`, `ws`, or null while there is no line
//   session     {id, model}, or null
//   state       `idle`, `opening`, `waiting`, `joining`, `live`, `lost`
//   status      the words that a person sees
//   stats()     {fps, framesSeen, chunks, freezes, longestFreeze_s, still_s, controlLatencies, serverLatencies, lateness,
//                frames, roundTrip_s, buffer_s}: seconds; `controlLatencies` from a press to the first frame that shows it;
//                `serverLatencies` the server's own, to the frame's leaving; `frames` the newest few thousand as
//                {t (ms of performance.now(), when it was on the screen), mediaTime (s since the session's start, where
//                known)}; freezes are gaps between frames on the screen of more than 0.3 s
//   start({model, prompt, seed, image}), stop(), press(action), release(action), send(event)
// In the address: `?transport=ws` tries no call, `?microphone=raw` takes the microphone as it is.

import * as cards from "./cards.js";
import { Connection } from "./connection.js";
import { find } from "./elements.js";
import { STRIP, list, values } from "./figures.js";
import { left } from "./kept.js";
import { Keys } from "./keys.js";
import { Prompts } from "./prompts.js";
import { Reference } from "./reference.js";
import { keepToken, models, takeToken } from "./session.js";
import { Strip } from "./strip.js";
import { Talk } from "./talk.js";
import { Watch } from "./watch.js";
import * as words from "./words.js";

const FIGURES_MS = 500;
const PLACES_MS = 5000;
const AGAIN_MS = 3000;
const HALF_LIT = 4;

const video = find("picture");
const glow = find("glow").getContext("2d");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let drawn;
const loaded = new Promise((done) => { drawn = done; });
let offers = [];
let offer = null;
let kept = null;
let frames = 0;

const connection = new Connection(video, {
  status, changed, playing, locked,
  joined: () => {
    watch.again();
    status(offer.hears ? words.LIVE_TALK : offer.actions.length > 1 ? words.LIVE_WALK : words.LIVE);
    if (keys.held.length) connection.hold(keys.held);
    // Space is to talk now, and not to press what the start button has become.
    if (offer.hears && document.activeElement === find("start")) find("hold").focus({ preventScroll: true });
    places();
  },
  chunk: (message) => watch.chunk(message),
  figures: (message) => entered(message.recent ?? []),
  asked: (id) => {
    watch.asked(id);
    strip.asked(id);
  },
}, new URLSearchParams(location.search).get("transport"));
const strip = new Strip(find("strip"));
const watch = new Watch(video, { frame: seen, seen: (chunk) => strip.shown(chunk, offer.fps) });
const keys = new Keys((held) => connection.hold(held));
const talk = new Talk(connection, status);
const prompts = new Prompts(connection);
const reference = new Reference(status, () => connection.state !== "idle", anew);
const show = list();

function status(text, bad = false) {
  const place = find("status");
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("bad", bad);
}

/** The connection's state is another one. */
function changed() {
  const { state } = connection;
  const running = state !== "idle";
  const live = state === "live";
  const start = find("start");
  start.textContent = running ? (state === "waiting" ? "Leave the queue" : "Stop") : kept ? "Go on" : "Start";
  start.classList.toggle("stop", running);
  find("cards").disabled = running;
  document.body.classList.toggle("running", running);
  keys.active = live && offer.actions.length > 1;
  if (!keys.active) keys.releaseAll();
  talk.enable(running && offer.hears && (live || (state === "lost" || state === "joining") && talk.active));
  find("frame").classList.toggle("lost", state === "lost");
  if (!running) {
    find("frame").classList.remove("seen", "lit");
    find("unmute").hidden = true;
  }
  reference.draw();
  strip.run(live);
  figures();
}

/** A source of pictures is there. Browsers let a page that was not touched play without sound only. */
async function playing() {
  watch.again();
  try {
    video.muted = false;
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return;
    video.muted = true;
    find("unmute").hidden = !offer.hears;
    await video.play().catch(() => {});
  }
}

function seen() {
  find("frame").classList.add("seen");
  frames += 1;
  if (calm.matches || frames % HALF_LIT) return;
  find("frame").classList.add("lit");
  glow.drawImage(video, 0, 0, 16, 16);
}

/** When chunks took in what was asked, as the server has it: so long before their first frame was due. */
function entered(recent) {
  for (const { chunk, made_s: made, slack_s: slack } of recent) {
    const shown = watch.arrived(chunk);
    if (shown !== null && made !== null) strip.entered(chunk, shown - (made + Math.max(0, slack)) * 1000);
  }
}

function figures() {
  if (offer) show(values(watch, connection.line, offer));
}

function locked() {
  keepToken(null);
  find("token-form").hidden = false;
  find("token").focus();
}

/** Another model was chosen. */
function choose(chosen) {
  offer = { ...chosen, actions: chosen.actions ?? [] };
  find("talk").hidden = !offer.hears;
  find("drive").hidden = offer.actions.length < 2;
  find("words").hidden = !offer.prompts;
  find("reference").hidden = !offer.picture;
  find("cover-art").setAttribute("href", `#${cards.art(offer)}`);
  find("frame").style.setProperty("--shape", `${offer.width} / ${offer.height}`);
  find("honest").textContent = words.honest(offer);
  keys.draw(offer.actions, find("pad"), find("more-actions"));
  prompts.draw(offer);
  watch.reset();
  strip.clear();
  status(kept ? words.RESUME : words.READY);
  changed();
}

async function start(wanted = {}) {
  watch.reset();
  strip.clear();
  if (kept) {
    const session = { ...kept, model: offer };
    kept = null;
    await connection.resume(session);
    return;
  }
  const asked = { prompt: prompts.prompt, ...wanted };
  try {
    if (offer.picture && !asked.image) asked.image = await reference.id();
  } catch (error) {
    status(words.refused(error), true);
    return;
  }
  for (const [name, value] of Object.entries(asked)) if (value === null || value === undefined) delete asked[name];
  await connection.start(offer, asked);
}

async function anew() {
  await connection.stop();
  await start();
}

async function places() {
  if (document.hidden || offers.length === 0) return;
  try {
    for (const now of await models()) {
      if (now.id === offer.id) Object.assign(offer, { running: now.running, capacity: now.capacity, waiting: now.waiting });
    }
    find("places").textContent = words.places(offer);
  } catch {
    // A session says by itself when its server is gone; without one, Start will.
  }
}

/** Asks what there is, until there is an answer. */
async function load() {
  try {
    offers = await models();
  } catch (error) {
    find("live").hidden = false;
    find("start").disabled = true;
    status(words.refused(error), true);
    if (error.code === "unauthorized") locked();
    else setTimeout(load, AGAIN_MS);
    return;
  }
  find("token-form").hidden = true;
  find("live").hidden = false;
  find("start").disabled = false;
  kept = await left(offers);
  cards.draw(offers, choose);
  if (kept) cards.choose(kept.model.id);
  drawn();
  await places();
}

find("start").addEventListener("click", () => (connection.state === "idle" ? start() : connection.stop()));
find("unmute").addEventListener("click", () => {
  video.muted = false;
  find("unmute").hidden = true;
});
find("cards").addEventListener("input", () => { kept = null; });
find("choice").addEventListener("submit", (event) => event.preventDefault());
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(find("token").value.trim());
  load();
});
find("strip-help").textContent = STRIP;
setInterval(figures, FIGURES_MS);
setInterval(places, PLACES_MS);
addEventListener("resize", () => strip.draw());

window.everframe = {
  get transport() { return connection.line?.kind ?? null; },
  get session() { return connection.session && { id: connection.session.id, model: connection.session.model.id }; },
  get state() { return connection.state; },
  get status() { return find("status").textContent; },
  stats: () => ({
    fps: watch.fps, framesSeen: watch.framesSeen, chunks: watch.chunks, freezes: watch.freezes,
    longestFreeze_s: watch.longestFreeze, still_s: watch.still, controlLatencies: [...watch.controlLatencies],
    serverLatencies: [...watch.serverLatencies], lateness: [...watch.lateness], frames: [...watch.frames],
    roundTrip_s: connection.line?.roundTrip ?? null, buffer_s: connection.line?.ahead ?? null,
  }),
  start: async ({ model, ...wanted } = {}) => {
    await loaded;
    if (model) cards.choose(model);
    await start(wanted);
  },
  stop: () => connection.stop(),
  press: (action) => keys.press(action, "program"),
  release: (action) => keys.release(action, "program"),
  send: (event) => connection.event(event),
};

takeToken();
load();
