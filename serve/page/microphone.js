// The microphone: open while a session wants it, silent unless somebody talks.

const MOST_RATE = 48_000;
const FLOOR_DB = -60;
const RAW = new URLSearchParams(location.search).get("microphone") === "raw";

/**
 * What the voice of a person before loudspeakers wants: without echo cancellation the model hears itself. Automatic gain
 * would lift the room's noise to speech in each pause. `?microphone=raw` in the address takes all of it out, for
 * music and for measurements with test tones.
 */
const WANTED = { echoCancellation: !RAW, noiseSuppression: !RAW, autoGainControl: false, channelCount: 1 };

export class Microphone {
  #stream = null;
  #context = null;
  #source = null;
  #meter = null;
  #samples = null;
  #worklet = null;

  /** Asks the person. Raises what getUserMedia raises. */
  async open() {
    this.#stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    this.track.enabled = false;
    this.#context = context();
    await this.#context.resume();
    this.#source = this.#context.createMediaStreamSource(this.#stream);
    this.#meter = this.#context.createAnalyser();
    this.#meter.fftSize = 1024;
    this.#samples = new Float32Array(this.#meter.fftSize);
    this.#source.connect(this.#meter);
  }

  /** Whether this page may have one at all: browsers give it to https and localhost. */
  static get possible() {
    return window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);
  }

  get track() {
    return this.#stream.getAudioTracks()[0];
  }

  /** Whether what is said is heard; silence goes up otherwise, so that time goes on at the other end. */
  set talking(on) {
    this.track.enabled = on;
  }

  get talking() {
    return this.track.enabled;
  }

  /** How loud it is now, 0 to 1 from -60 dB to full scale. */
  get level() {
    if (!this.#meter || !this.talking) return 0;
    this.#meter.getFloatTimeDomainData(this.#samples);
    let sum = 0;
    for (const sample of this.#samples) sum += sample * sample;
    const loudness = 10 * Math.log10(sum / this.#samples.length + 1e-12);
    return Math.min(1, Math.max(0, 1 - loudness / FLOOR_DB));
  }

  /** Gives `take(block, rate)` blocks of 20 ms, s16 mono in an ArrayBuffer, until it is called with null. */
  async pcm(take) {
    this.#worklet?.disconnect();
    if (this.#worklet) this.#worklet.port.onmessage = null;
    this.#worklet = null;
    if (!take) return;
    await this.#context.audioWorklet.addModule("/page/blocks.js");
    this.#worklet = new AudioWorkletNode(this.#context, "blocks", { numberOfOutputs: 0 });
    this.#worklet.port.onmessage = ({ data }) => take(data, this.#context.sampleRate);
    this.#source.connect(this.#worklet);
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    this.#stream = this.#context = this.#meter = this.#worklet = null;
  }
}

/** In the device's own rate, for not every browser resamples a microphone; the server takes up to 48 kHz. */
function context() {
  const own = new AudioContext();
  if (own.sampleRate <= MOST_RATE) return own;
  own.close();
  return new AudioContext({ sampleRate: MOST_RATE });
}
