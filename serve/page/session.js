// The server's HTTP interface: what it offers, and a session's beginning, state and end.

const KEPT = "everframe.token";
/** What a server's token is made of; browsers send nothing else in a header or a subprotocol. */
const TOKEN = /^[\w.~-]+$/;
/** Where a tab keeps the session that it has. */
export const SESSION = "everframe.session";
let held = null;
let guest = null;

/** A request that was refused, or an answer that never came (`code` is then `unreachable`). */
export class Refused extends Error {
  constructor(code, message, retryAfter = null) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The server's token, as the address' fragment brought it or a person typed it; kept for this tab, or null. */
export function token() {
  return held;
}

/** Keeps a token. A tab that may keep nothing has it until it is closed or loaded again. */
export function keepToken(given) {
  held = given;
  try {
    if (given) sessionStorage.setItem(KEPT, given);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // Storage is switched off.
  }
}

/** The session {id, secret} that this tab has from before, or from its address, which someone else opened; or null. */
export function had() {
  try {
    return JSON.parse(sessionStorage.getItem(SESSION)) ?? guest;
  } catch {
    return guest;
  }
}

/**
 * Takes the token out of the address, or a session's id and secret, so that they are in no history and on no screen that
 * is shared.
 */
export function takeToken() {
  const said = new URLSearchParams(location.hash.slice(1));
  const [given, id, secret] = ["token", "session", "secret"].map((name) => said.get(name));
  if (given || (id && secret)) history.replaceState(null, "", location.pathname + location.search);
  try {
    held = sessionStorage.getItem(KEPT);
    if (id && secret) sessionStorage.setItem(SESSION, JSON.stringify({ id, secret }));
  } catch {
    // Storage is switched off.
  }
  if (given) keepToken(given);
  guest = id && secret ? { id, secret } : had();
}

async function ask(method, path, { body = null, json = null, secret = null, limit = 15_000 } = {}) {
  const headers = {};
  if (held && !TOKEN.test(held)) throw new Refused("unauthorized", "no server has such a token");
  if (held) headers.Authorization = `Bearer ${held}`;
  else secret ??= guest?.secret;
  if (secret) headers["X-Session-Secret"] = secret;
  if (json) headers["Content-Type"] = "application/json";
  if (body) headers["Content-Type"] = body.type;
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, body: json ? JSON.stringify(json) : body, cache: "no-store", signal: AbortSignal.timeout(limit),
    });
  } catch (error) {
    throw new Refused("unreachable", error.message);
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const after = Number(found.retry_after_s ?? answer.headers.get("Retry-After"));
  throw new Refused(found.type ?? `http_${answer.status}`, found.detail ?? answer.statusText, after || null);
}

/** What the server offers: a list of models, with how many places each has and how many are taken. */
export const models = async () => (await ask("GET", "/v1/models")).data;

/** What the server says of itself: {status, reasons}. Raises nothing: `models` says why it does not answer. */
export async function readiness() {
  try {
    return await (await fetch("/readyz", { cache: "no-store", signal: AbortSignal.timeout(15_000) })).json();
  } catch {
    return {};
  }
}

/** For RTCPeerConnection. */
export const iceServers = async () => (await ask("GET", "/v1/ice-servers")).iceServers;

/** Opens a session, or joins the queue for one. `wanted`: {model, prompt, seed, image, seconds}. */
export const open = (wanted) => ask("POST", "/v1/sessions", { json: { ...wanted, queue: true } });

const at = (session) => `/v1/sessions/${encodeURIComponent(session.id)}`;

/** A session's state and figures. */
export const look = (session) => ask("GET", at(session), { secret: session.secret });

/** Ends a session and gives its place to the next. */
export const end = (session) => ask("DELETE", at(session), { secret: session.secret });

/** The server's half of a call. `offer` and what comes back: {sdp, type}. */
export const answer = (session, offer) => ask("POST", `${at(session)}/offer`, { json: offer, secret: session.secret });

/** Leaves a picture with the server for ten minutes: {id, width, height, expires_at}. */
export const upload = (file) => ask("POST", "/v1/uploads", { body: file, limit: 60_000 });
