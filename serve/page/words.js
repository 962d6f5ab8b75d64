// All sentences that the page says by itself, in one place.

/** Whether there is nothing but a finger to do things with. */
const touch = matchMedia("(hover: none) and (pointer: coarse)").matches;

const ENDED = {
  stopped: "Stopped. Start again whenever you like.",
  idle: "It ended, because nothing had been said, pressed or typed for a while. Start again whenever you like.",
  lease: "It ended while nobody was watching. Start again whenever you like.",
  drained: "It ended, because the server is closing down. Try again in a few minutes.",
  limit: "It ended: this is as long as a session may take. You can start the next one right away.",
  failed: "It ended: something broke on the server. Its log says what happened.",
  capacity: "It ended, because the server has become slower and keeps fewer sessions. Try again in a few minutes.",
  vanished: "It ended: the line to this page was lost for too long. You can start again.",
};

const REFUSED = {
  unreachable: "The server cannot be reached. Is it running, and is the network there?",
  unauthorized: "The server wants a token that this page does not have. Open the address that ends in #token=…",
  forbidden: "This page's address is none that the server answers to; serve.names and serve.origins list those that it does.",
  full: "All places are taken.",
  draining: "The server is closing down and takes nobody new.",
  not_ready: "The server is still getting ready.",
  too_many: "That was a lot in a short time, or too many sessions from here at once.",
  gone: "This model is gone; the server has to be started anew.",
  not_found: "That session is gone. Start a new one.",
  ended: "That session has ended. Start a new one.",
  too_large: "That file is too large.",
  audio_full: "It still has much to say. Wait until it has said more of it.",
};

/** Seconds, said as people do. */
export function seconds(given) {
  if (given < 1.5) return "a second";
  if (given < 90) return `${Math.round(given)} seconds`;
  if (given < 5400) return `${Math.round(given / 60)} minutes`;
  return `${Math.round(given / 3600)} hours`;
}

/** Why a session is over. */
export const ended = (reason) => ENDED[reason] ?? `It ended (${reason}).`;

/** Why something was refused, and when to try again. What the server says in its own words comes last, where it adds something. */
export function refused({ code, message, retryAfter = null }) {
  const own = REFUSED[code];
  const again = retryAfter ? ` Try again in ${seconds(retryAfter)}.` : "";
  return `${own ?? `The server refused: ${message}.`}${again}`.replace(/\.\.$/, ".");
}

/** Where one stands in the queue. */
export function waiting(position, wait) {
  const place = position === 1 ? "You are next" : `You are number ${position} in the queue`;
  return `All places are taken. ${place}${wait ? `, in about ${seconds(Math.ceil(wait / 5) * 5)}` : ""}. Keep this page open.`;
}

/** A notice from the server: {kind, seconds_left, message}, of a model. */
export function notice({ kind, seconds_left: left = null, message = "" }, { id }) {
  const ends = left === null ? "" : ` This session ends in ${seconds(left)}.`;
  if (kind === "draining") return `The server is closing down.${ends}`;
  if (kind === "expiring") return ends.trim();
  if (kind === "frozen") return MOMENT;
  if (kind === "resumed") return "The stream goes on.";
  if (kind === "interrupted") return "It stopped speaking.";
  return `${message.replace(id, title(id))}.`.replace(/\.\.$/, ".");
}

/** The picture does not move, or has not come, for so many seconds. */
export const still = (since, seen) =>
  `${seen ? "The picture stands still" : "No picture has come"}, for ${seconds(since)} now: nothing new comes from the server.`;

/** How one walks; `looks`: one looks around besides. */
export const walking = (looks) =>
  touch ? "Hold a button." : `Hold a button, ${looks ? "W A S D, or a gamepad's left stick" : "the arrow keys, W A S D, or a gamepad's stick"}.`;

/** Where one is on the map: so far to the right of where one began, and ahead. */
export function place(right, ahead) {
  const far = (by, one, other) => `${Math.abs(by).toFixed(1)} ${by < 0 ? other : one}`;
  return `Map: you are ${far(ahead, "ahead of", "behind")} and ${far(right, "to the right of", "to the left of")} where you began`;
}

/** Of the picture that a session begins with: which to choose, when it counts, and that it does not count yet. */
export const picture = ({ hears }) => (hears ? {
  choose: "Choose a picture of a face, or drop one here",
  help: "A session keeps the face that it began with: a picture counts from the next start.",
  later: "The face stays as it is while this session runs. Start anew to begin with your picture.",
} : {
  choose: "Choose a picture to begin with, or drop one here",
  help: "A session goes on from the picture that it began with: another one counts from the next start.",
  later: "This session goes on from the picture that it began with. Start anew to begin with yours.",
});

/** How many places of a model are taken: {running, capacity, waiting}; `own`: who reads it waits, too. */
export function places({ running = 0, capacity = 0, waiting = 0 }, own = false) {
  const taken = `${running} of ${capacity} ${capacity === 1 ? "place" : "places"} taken`;
  const queued = Math.max(waiting, own ? 1 : 0);
  const you = queued === 1 ? "you wait" : `${queued} wait, you among them`;
  return queued ? `${taken}, ${own ? you : `${queued} waiting`}` : taken;
}

/** What is true of the picture, without advertisement: from an offer. */
export function honest({ width, height, fps, chunk_s: chunk, trained = true }) {
  const small = !trained ? ", from a network with random weights, which has learnt nothing"
    : width * height <= 64 * 64 ? ", from a network of a few million parameters" : "";
  return `Made as you watch: ${width}×${height} pixels${small}, ${round(fps)} frames a second, in pieces of film of ${round(chunk)} s. `
    + "What you do shows in one of the next.";
}

/** What a model is, under its name on a card. */
export function kind({ hears, sees, actions = [], prompts, width, height }) {
  const does = [sees && "show it something", hears && "talk to it", actions.length > 1 && "walk through it", prompts && "tell it what to show"];
  const said = does.filter(Boolean).join(", ");
  return `${said ? said[0].toUpperCase() + said.slice(1) : "Watch it"}. ${width}×${height}.`;
}

/** A model's id as a title: `some_model` becomes `Some model`. */
export function title(id) {
  const words = id.replace(/[_-]+/g, " ");
  return words[0].toUpperCase() + words.slice(1);
}

export const MOMENT = "One moment: the stream goes on.";
export const OPENING = "Opening a session …";
export const STARTING = "Your session is being prepared …";
export const CALLING = "Connecting …";
export const OVER_SOCKET = "A direct line could not be had, so it comes over a WebSocket: all works, a little later.";
export const LIVE_TALK = touch ? "Live. Hold the button and talk." : "Live. Hold the button, or Space, and talk.";
export const LIVE_LOOK = touch ? "Live. Hold a button to walk; drag the picture to look around."
  : "Live. W A S D walks; click the picture to look around with the mouse.";
export const LOOKING = "The mouse looks around. Esc lets go of it; R starts over.";
export const NO_LOCK = "The browser does not let the picture have the mouse. Drag on it instead.";
export const LOOK = touch ? "A finger that drags the picture looks around." : "Click the picture and the mouse looks around, until Esc. "
  + "So do the arrow keys, a drag on the picture, and a gamepad's right stick. While the mouse looks, R starts over.";
export const LIVE_WALK = touch ? "Live. Hold a button to walk." : "Live. Hold an arrow key or a button to walk.";
export const LIVE_SEE = "Live. Choose what it sees.";
export const LIVE = "Live.";
export const LOADING = "The models are loading. That may take a minute or two; this page goes on by itself.";
export const READY = "Press Start.";
export const FULL = "All places are taken. Wait in line for one.";
/** What a server that closes down says of itself, at /readyz. */
export const ENDING = "the server is ending";
export const SERVER_GONE = "The server is gone: it does not answer. This page goes on when it is back.";
export const MODEL_GONE = REFUSED.gone;
export const TOKEN_WRONG = "This token is not the server's. Compare it with the address that the server printed.";
export const RESUME = "A session of yours is still there. Go on with it?";
export const GONE = "The line was lost, and the session has ended meanwhile. You can start again.";
export const NO_MICROPHONE = "The microphone could not be had. The browser's settings for this page say whether it may be used.";
export const MICROPHONE_READY = "The microphone is ready. Hold the button and talk.";
export const INSECURE = "Browsers give the microphone to https:// and localhost only. serve.tls=auto gives this server https.";
export const NO_CAMERA = "The camera could not be had, so it sees the test picture. The browser's settings for this page say whether it may be used.";
export const INSECURE_CAMERA = "Browsers give the camera to https:// and localhost only, so it sees the test picture. serve.tls=auto gives this server https.";
export const NO_VIDEO = "That file is no video that this browser can play.";
export const NO_PLAYER = "This browser can play neither WebRTC nor H.264 over a WebSocket. A newer one can.";
export const PICTURE_NEXT = "The picture is ready: it counts from the next start.";
export const NO_PICTURE = "That is not a PNG, JPEG or WebP picture.";
export const NO_SOUND = "That file holds no sound that this browser can read.";

/** While the line is being made again. */
export const lost = (attempt, wait) =>
  `The line was lost. Attempt ${attempt} to get it back${wait >= 1 ? ` in ${seconds(wait)}` : ""} …`;

const round = (number) => Math.round(number * 100) / 100;
