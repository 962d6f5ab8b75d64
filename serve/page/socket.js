// The line over a WebSocket: JSON as text, fragments of an mp4 down, and PCM and JPEG up, as binary.

import { Beat } from "./beat.js";
import { Player } from "./mse.js";
import { Refused, token } from "./session.js";

const OPENING = 10_000;
const PROTOCOL = "everframe.v1";
/** Bytes on their way up over which no picture is added: it would only be later than the next. */
const BEHIND = 1 << 17;

export class Socket {
  kind = "ws";
  #face;
  #socket = null;
  #beat = null;
  #player = null;
  #closed = false;
  #microphone = null;
  #media;
  #mime = null;

  /**
   * @param session {id, secret, model}.
   * @param video the element that plays; null: no media is wanted, only its messages.
   * @param face {message(json), lost(why), opened()}.
   */
  constructor(session, video, face) {
    this.session = session;
    this.video = video;
    this.#face = face;
    this.#media = video !== null;
  }

  /** Joins the session, once it has a place. Raises Refused as the server does, and where there is no server. */
  connect() {
    return new Promise((done, fail) => {
      const address = `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/v1/realtime/video`;
      const key = token() ? `everframe.token.${token()}` : `everframe.session.${this.session.secret}`;
      const socket = new WebSocket(address, [PROTOCOL, key]);
      this.#socket = socket;
      socket.binaryType = "arraybuffer";
      let joined = false;
      let refusal = null;
      const timer = setTimeout(() => socket.close(), OPENING);
      socket.onopen = () => {
        const { id, secret } = this.session;
        this.send({ type: "session.start", session: id, secret, media: this.#media });
      };
      socket.onmessage = ({ data }) => {
        this.#beat?.heard();
        if (typeof data !== "string") {
          this.#player?.append(data);
          return;
        }
        const message = JSON.parse(data);
        // Who waits for a place waits longer than for an answer.
        if (message.type === "session.queued") clearTimeout(timer);
        if (!joined && message.type === "session.started") {
          joined = true;
          clearTimeout(timer);
          this.#beat = new Beat((ping) => this.send(ping), () => this.#lose("no answer for five seconds"));
          done();
        }
        if (message.type === "error") refusal = message;
        this.#message(message);
      };
      socket.onclose = ({ code }) => {
        clearTimeout(timer);
        if (!joined) {
          this.close();
          fail(new Refused(refusal?.code ?? "unreachable", refusal?.message ?? `closed with ${code}`, refusal?.retry_after_s));
        } else this.#lose(`closed with ${code}`);
      };
    });
  }

  #message(message) {
    if (message.type === "session.pong") this.#beat?.pong(message);
    else if (message.type === "video.start") this.#start(message);
    else this.#face.message(message);
  }

  #start({ mime }) {
    // The same kind of film once more is another encoder's: its init segment goes after what was before.
    if (!this.#media || this.#mime === mime) return;
    this.#mime = mime;
    this.#player?.close();
    this.#player = new Player(this.video, mime, () => this.#lose("the picture could not be read"));
    this.#face.opened();
  }

  #lose(why) {
    if (this.#closed) return;
    this.close();
    this.#face.lost(why);
  }

  get roundTrip() {
    return this.#beat?.roundTrip ?? null;
  }

  /** Seconds of picture that are here and not yet shown. */
  get ahead() {
    return this.#player?.ahead ?? 0;
  }

  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Which keys are held now, of which the last pressed counts where one holds at a time, and how each axis turns. */
  hold({ keys, turn }, id) {
    const held = this.session.model.controls.one ? keys.slice(-1) : keys;
    this.send({ type: "session.interaction", event_id: id, event: { type: "action", keys: held, ...(turn.length && { mouse: turn }) } });
  }

  /**
   * The microphone goes up from now on, in blocks of 20 ms; null: no longer. It goes up while nobody talks, too, as
   * silence: the server counts samples to know when each was said.
   */
  async microphone(microphone) {
    this.#microphone?.pcm(null);
    this.#microphone = microphone;
    await microphone?.pcm((block, rate) => this.#sound(block, rate, true));
  }

  /** Speech to be spoken: s16 mono in an ArrayBuffer, a second or so at a time. */
  speak(block, rate) {
    this.#sound(block, rate, false);
  }

  /** A camera's picture, JPEG in an ArrayBuffer, taken at so many seconds; whether it went, and was not left out. */
  see(jpeg, at) {
    if (this.#socket?.readyState !== WebSocket.OPEN || this.#socket.bufferedAmount > BEHIND) return false;
    this.send({ type: "session.frame", at, bytes: jpeg.byteLength });
    this.#socket.send(jpeg);
    return true;
  }

  #sound(block, rate, live) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.send({ type: "session.audio", sample_rate: rate, channels: 1, bytes: block.byteLength, live });
    this.#socket.send(block);
  }

  close() {
    this.#closed = true;
    this.#beat?.stop();
    this.#microphone?.pcm(null);
    this.#player?.close();
    this.#socket?.close(1000);
  }
}
