// The direct line: one WebRTC connection with the picture, the sound both ways, and two data channels.

import { Beat } from "./beat.js";
import { answer, iceServers } from "./session.js";

const GATHERING = 1000;
const CONNECTING = 5000;
const SHAKY = 3000;
const HELD_EVERY = 100;
const SAID_AGAIN = 3;

/** The line cannot be had here; another transport may still work. */
export class NoLine extends Error {}

export class Call {
  kind = "rtc";
  #face;
  #peer;
  #control;
  #keys;
  #sound = null;
  #beat = null;
  #stream = new MediaStream();
  #closed = false;
  #shaky = null;
  #held = { held: [], event_id: null };
  #resting = true;
  #seq = 0;
  #again = 0;
  #resend = null;

  /**
   * @param session {id, secret, model}, as the server gave it, with the model's offer.
   * @param video the element that plays picture and sound.
   * @param face {message(json), lost(why), opened()}: what comes over the line, and its end if nobody here asked for it.
   */
  constructor(session, video, face) {
    this.session = session;
    this.video = video;
    this.#face = face;
  }

  /** Makes the connection. Raises NoLine after five seconds without one, and Refused as the server does. */
  async connect() {
    if (typeof RTCPeerConnection === "undefined") throw new NoLine("no WebRTC in this browser");
    const peer = new RTCPeerConnection({ iceServers: await iceServers(), bundlePolicy: "max-bundle" });
    this.#peer = peer;
    // The microphone comes later, when a person first talks: its track then takes this place without a new offer.
    if (this.session.model.hears) this.#sound = peer.addTransceiver("audio", { direction: "sendrecv" });
    peer.addTransceiver("video", { direction: "recvonly" });
    this.#control = peer.createDataChannel("control", { ordered: true });
    this.#keys = peer.createDataChannel("keys", { ordered: false, maxRetransmits: 0 });
    this.#control.onmessage = ({ data }) => this.#message(data);
    this.#control.onclose = () => this.#lose("the control channel closed");
    peer.ontrack = (event) => this.#track(event);
    const connected = this.#connected(peer);
    connected.catch(() => {});
    await peer.setLocalDescription();
    await gathered(peer);
    const { sdp, type } = peer.localDescription;
    await peer.setRemoteDescription(await answer(this.session, { sdp, type }));
    try {
      await within(CONNECTING, connected);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #connected(peer) {
    return new Promise((done, fail) => {
      let open = false;
      const look = () => {
        if (peer.connectionState === "failed") {
          fail(new NoLine("no way to the server was found"));
          this.#lose("the connection failed");
        }
        if (peer.connectionState === "disconnected") this.#shaky ??= setTimeout(() => this.#lose("nothing arrives"), SHAKY);
        else {
          clearTimeout(this.#shaky);
          this.#shaky = null;
        }
        if (open && peer.connectionState === "connected") done();
      };
      peer.onconnectionstatechange = look;
      this.#control.onopen = () => {
        open = true;
        this.#beat = new Beat((message) => this.send(message), () => this.#lose("no answer for five seconds"));
        look();
      };
    });
  }

  #track({ track, receiver, streams }) {
    // Frames are paced where they are made; a buffer here would only make them later. The sound keeps its own.
    if (track.kind === "video") {
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
      else if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
    }
    // Picture and sound of one stream are kept together by the browser.
    const stream = streams[0] ?? this.#stream;
    if (!stream.getTracks().includes(track)) stream.addTrack(track);
    if (this.video.srcObject !== stream) this.video.srcObject = stream;
    this.#face.opened();
  }

  #message(data) {
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    if (message.type === "session.pong") this.#beat?.pong(message);
    else this.#face.message(message);
  }

  #lose(why) {
    if (this.#closed) return;
    this.close();
    this.#face.lost(why);
  }

  get roundTrip() {
    return this.#beat?.roundTrip ?? null;
  }

  /** A message of the protocol; dropped while the line is not there. */
  send(message) {
    if (this.#control?.readyState === "open") this.#control.send(JSON.stringify(message));
  }

  /**
   * Which keys are held now, the last pressed last, and by how much each axis turns in a frame. Packets of this channel
   * may be lost, so the whole state goes, and again.
   */
  hold({ keys, turn }, id) {
    this.#held = { held: keys, ...(turn.length && { mouse: turn }), event_id: id };
    this.#resting = keys.length === 0 && !turn.some(Boolean);
    this.#again = SAID_AGAIN;
    this.#sayHeld();
    this.#resend ??= setInterval(() => this.#sayAgain(), HELD_EVERY);
  }

  #sayAgain() {
    if (this.#resting && this.#again <= 0) {
      clearInterval(this.#resend);
      this.#resend = null;
      return;
    }
    this.#again -= 1;
    this.#sayHeld();
  }

  #sayHeld() {
    this.#seq += 1;
    if (this.#keys?.readyState === "open") this.#keys.send(JSON.stringify({ seq: this.#seq, ...this.#held }));
  }

  /** The microphone goes up from now on; null: no longer. */
  async microphone(microphone) {
    await this.#sound?.sender.replaceTrack(microphone?.track ?? null);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#shaky);
    clearInterval(this.#resend);
    this.#beat?.stop();
    this.#peer?.close();
    this.video.srcObject = null;
  }
}

/** All candidates are in the offer, for the server takes none afterwards; an interface that is slow to answer is not waited for. */
function gathered(peer) {
  if (peer.iceGatheringState === "complete") return null;
  return new Promise((done) => {
    setTimeout(done, GATHERING);
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done();
  });
}

function within(limit, promise) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new NoLine(`not connected after ${limit / 1000} s`)), limit);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
