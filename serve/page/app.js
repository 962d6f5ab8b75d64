// The page: what the server offers, one session at a time, and all that a person can do in it.
//
// In the address: `?transport=ws` tries no call, `?microphone=raw` takes the microphone as it is.

import * as cards from "./cards.js";
import { Connection } from "./connection.js";
import { Drive } from "./drive.js";
import { find } from "./elements.js";
import { list, values } from "./figures.js";
import { forget, left } from "./kept.js";
import { Line } from "./line.js";
import * as moment from "./moment.js";
import { Outlook, beginning, full } from "./outlook.js";
import { Picture } from "./picture.js";
import { face } from "./program.js";
import { Prompts } from "./prompts.js";
import { Reference } from "./reference.js";
import { See } from "./see.js";
import { end, takeToken } from "./session.js";
import { Strip } from "./strip.js";
import { Talk } from "./talk.js";
import * as token from "./token.js";
import { Trail } from "./trail.js";
import { Watch } from "./watch.js";
import * as words from "./words.js";

const FIGURES_MS = 500;
const LOOK_MS = 3000;
const STILL_S = 2;

const video = find("picture");
const picture = new Picture(video);
let drawn;
const loaded = new Promise((done) => { drawn = done; });
const line = new Line();
const outlook = new Outlook();
let offer = null;
let kept = null;
let trouble = null;
let before = "idle";
let unknown = false;
let begun = {};
let seed = null;

const connection = new Connection(video, {
  status, notice, changed, playing, locked: token.ask,
  joined: () => {
    watch.again();
    lively();
    drive.joined();
    // Keys are to talk and to drive now, and not to press what the start button has become.
    if (document.activeElement === find("start")) find(offer.hears ? "hold" : "stage").focus({ preventScroll: true });
    look();
  },
  chunk: (message) => watch.chunk(message),
  figures: (message) => {
    seed = message.seed ?? null;
    entered(message.recent ?? []);
    moment.stand(message.frozen ?? false);
  },
  asked: (id, event) => {
    watch.asked(id);
    strip.asked(id);
    if (unknown && event?.type === "prompt") lively();
  },
}, new URLSearchParams(location.search).get("transport"));
const strip = new Strip(find("strip"));
const trail = new Trail(find("trail"), (on) => { find("trail").hidden = !on; });
const watch = new Watch(video, { frame: () => picture.seen(), seen: shown });
const drive = new Drive(connection, {
  held: (on) => (on ? status(words.LOOKING) : connection.state === "live" && lively()),
  refused: () => status(words.NO_LOCK, true),
  again,
});
const talk = new Talk(connection, status);
const see = new See(connection, status, (at) => watch.filmed(at), () => connection.state === "live" && lively());
const prompts = new Prompts(connection);
const reference = new Reference(status, () => connection.state !== "idle", again);
const show = list();

function status(text, bad = false) {
  unknown = false;
  line.say(text, bad);
}

function lively() {
  const does = [
    [offer.sees && see.rate === null, words.LIVE_SEE], [offer.hears, words.LIVE_TALK], [drive.looks, words.LIVE_LOOK], [drive.drives, words.LIVE_WALK],
  ];
  status(does.find(([so]) => so)?.[1] ?? words.LIVE);
}

/** The server has something to say: `session.notice`. */
function notice(message) {
  status(words.notice(message, offer));
  moment.noticed(message);
  unknown = message.kind === "words";
  if (message.seconds_left) line.count(message.seconds_left, (left) => words.notice({ ...message, seconds_left: left }, offer));
}

/** The connection's state is another one. */
function changed() {
  const { state } = connection;
  const running = state !== "idle";
  const live = state === "live";
  buttons();
  find("cards").disabled = running;
  document.body.classList.toggle("running", running);
  drive.enable(live, running);
  talk.enable(running && offer.hears && (live || (state === "lost" || state === "joining") && talk.active));
  see.enable(running);
  find("frame").classList.toggle("lost", state === "lost");
  if (!running) picture.blank();
  reference.show();
  strip.run(live);
  figures();
  const other = state !== before;
  before = state;
  if (other && (state === "waiting" || !running)) look();
}

function buttons() {
  const { state } = connection;
  const running = state !== "idle";
  const start = find("start");
  start.textContent = running ? (state === "waiting" ? "Leave the queue" : "Stop") : beginning(offer, kept);
  start.disabled = !running && (!offer || trouble !== null);
  start.classList.toggle("stop", running);
  find("again").hidden = !["live", "lost"].includes(state);
  find("leave").hidden = running || !kept;
}

/** A source of pictures is there. */
function playing() {
  watch.again();
  picture.play(offer.hears);
}

/** A chunk's first frame is on the screen. */
function shown(chunk) {
  strip.shown(chunk, offer.fps);
  trail.add(chunk.pose);
}

/** When chunks took in what was asked, as the server has it: so long before their first frame was due. */
function entered(recent) {
  for (const { chunk, made_s: made, slack_s: slack } of recent) {
    const shown = watch.arrived(chunk);
    if (shown !== null && made !== null) strip.entered(chunk, shown - (made + Math.max(0, slack)) * 1000);
  }
}

function figures() {
  if (offer) show(values(watch, connection.line, offer, see.rate));
  const still = connection.state === "live" && !document.hidden && !moment.stands() && watch.waited > STILL_S;
  line.still(still ? watch.waited : null, watch.framesSeen > 0);
}

/** Another model was chosen. */
function choose(chosen) {
  offer = { ...chosen, controls: chosen.controls ?? { keys: chosen.actions ?? [], one: true, axes: [] } };
  find("talk").hidden = !offer.hears;
  find("words").hidden = !offer.prompts;
  find("cover-art").setAttribute("href", `#${cards.art(offer)}`);
  find("pair").style.setProperty("--shape", `${offer.width} / ${offer.height}`);
  find("honest").textContent = words.honest(offer);
  see.draw(offer);
  drive.draw(offer);
  reference.draw(offer);
  prompts.draw(offer);
  forgetSeen();
  waitingToBegin();
  changed();
  begin();
}

/** What was seen is of no session any more. */
function forgetSeen() {
  watch.reset();
  strip.clear();
  trail.clear();
}

async function start(wanted = {}) {
  if (kept) {
    forgetSeen();
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
  forgetSeen();
  picture.blank();
  [begun, seed] = [wanted, null];
  for (const [name, value] of Object.entries(asked)) if (value === null || value === undefined) delete asked[name];
  await connection.start(offer, asked);
}

/** Once more what is running, from its beginning: with its seed, and with the words and the picture that are chosen now. */
async function again() {
  const wanted = { ...begun, seed: seed ?? begun.seed };
  if (prompts.prompt) delete wanted.prompt;
  if (reference.chosen) delete wanted.image;
  await start(wanted);
}

/** Nothing was said that a person should still read: only whether one can begin. */
function waitingToBegin() {
  status(kept ? words.RESUME : full(offer) ? words.FULL : words.READY);
}

/** Looks at the server, and shows what it offers, how many are there, and whether one can begin. */
async function look() {
  if (token.wanted() || (document.hidden && offer)) return;
  const idle = () => connection.state === "idle";
  const others = await outlook.look(idle());
  if (others && idle()) await draw();
  if (offer) outlook.counted(offer);
  // A session says by itself when its server is gone.
  if (idle() && outlook.error?.code === "unauthorized") token.ask();
  else begin();
}

/** Other models are offered. */
async function draw() {
  const before = offer?.id;
  kept = await left(outlook.offers);
  cards.draw(outlook.offers, choose);
  cards.choose(kept?.model.id ?? before);
  if (offer) drawn();
}

/** Shows whether one can begin. */
function begin() {
  if (token.wanted()) return;
  find("live").hidden = false;
  find("choice").hidden = outlook.offers.length < 2;
  find("places").textContent = offer && !outlook.error ? words.places(offer, connection.state === "waiting") : "";
  const idle = connection.state === "idle";
  const now = idle ? outlook.trouble(offer) : null;
  if (now) status(now.text, now.bad);
  else if (idle && (trouble || [words.READY, words.FULL].includes(line.text))) waitingToBegin();
  trouble = now;
  buttons();
}

find("start").addEventListener("click", () => (connection.state === "idle" ? start() : connection.stop()));
find("again").addEventListener("click", again);
find("leave").addEventListener("click", async () => {
  const session = kept;
  kept = null;
  forget();
  await end(session).catch(() => {}); // the lease ends it
  status(words.ended("stopped"));
  changed();
  look();
});
find("cards").addEventListener("input", () => { kept = null; });
find("choice").addEventListener("submit", (event) => event.preventDefault());
token.listen(look);
setInterval(figures, FIGURES_MS);
setInterval(look, LOOK_MS);
document.addEventListener("visibilitychange", () => watch.looking());
addEventListener("resize", () => strip.draw());

window.everframe = face(connection, watch, drive, see, {
  start: async ({ model, ...wanted } = {}) => {
    await loaded;
    if (model) cards.choose(model);
    await start(wanted);
  },
  again,
});
takeToken();
look();
