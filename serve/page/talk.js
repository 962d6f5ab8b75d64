// The panel for talking: hold the button, or keep it on; and a file instead of a voice.

import { find, writes } from "./elements.js";
import { Microphone } from "./microphone.js";
import { RATE, read, say } from "./speech.js";
import * as words from "./words.js";

const METER_MS = 66;

export class Talk {
  #connection;
  #status;
  #microphone = null;
  #opening = null;
  #holders = new Set();
  #meter = null;
  #saying = null;
  #hold = find("hold");
  #listen = find("listen");

  /** `status(text, bad)` says something to the person. */
  constructor(connection, status) {
    this.#connection = connection;
    this.#status = status;
    this.active = false;
    const hold = this.#hold;
    hold.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      hold.focus();
      hold.setPointerCapture(event.pointerId);
      this.#press("pointer");
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) hold.addEventListener(end, () => this.#release("pointer"));
    hold.addEventListener("contextmenu", (event) => event.preventDefault());
    // Enter would click as well, and a click means something else.
    hold.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (!event.repeat) this.#press("key");
    });
    hold.addEventListener("keyup", (event) => {
      if ([" ", "Enter"].includes(event.key)) event.preventDefault();
      this.#release("key");
    });
    hold.addEventListener("blur", () => this.#release("key"));
    // A click without a pointer comes from assistive technology, which cannot hold: it switches.
    hold.addEventListener("click", (event) => event.detail === 0 && !event.pointerType && this.#switch());
    addEventListener("keydown", (event) => this.#space(event));
    addEventListener("keyup", (event) => event.code === "Space" && this.#release("space"));
    addEventListener("blur", () => this.#release("space"));
    this.#listen.addEventListener("change", () => (this.#listen.checked ? this.#press("switch") : this.#release("switch")));
    find("interrupt").addEventListener("click", () => this.interrupt());
    find("speech").addEventListener("change", (event) => this.#file(event.target));
  }

  /** Whether a session that hears runs. */
  enable(on) {
    this.active = on;
    for (const id of ["hold", "listen", "speech", "interrupt"]) find(id).disabled = !on;
    if (!on) this.#end();
  }

  #space(event) {
    if (event.code !== "Space" || !this.active || writes(event.target)) return;
    // On a control, Space is what it always is there; on this button it talks.
    const control = event.target.closest?.("button, input, a, label");
    if (control && control !== this.#hold) return;
    event.preventDefault();
    if (!event.repeat) this.#press("space");
  }

  #switch() {
    this.#listen.checked = !this.#listen.checked;
    this.#listen.dispatchEvent(new Event("change"));
  }

  async #press(by) {
    if (!this.active) return;
    this.#holders.add(by);
    if (!this.#microphone) {
      await (this.#opening ??= this.#open());
      this.#opening = null;
    }
    this.#tell();
  }

  #release(by) {
    if (this.#holders.delete(by)) this.#tell();
  }

  async #open() {
    const microphone = new Microphone();
    try {
      if (!Microphone.possible) throw new Error(words.INSECURE);
      await microphone.open();
      if (!this.active) {
        microphone.close();
        return;
      }
      this.#microphone = microphone;
      await this.#connection.microphone(microphone);
      // Asking took the pointer away from the button.
      if (this.#holders.size === 0) this.#status(words.MICROPHONE_READY, false);
    } catch (error) {
      microphone.close();
      this.#holders.clear();
      this.#listen.checked = false;
      this.#status(Microphone.possible ? words.NO_MICROPHONE : words.INSECURE, true);
      if (Microphone.possible) console.warn(error);
    }
  }

  #tell() {
    const on = this.#holders.size > 0 && this.#microphone !== null;
    if (this.#microphone) this.#microphone.talking = on;
    this.#hold.classList.toggle("on", on);
    find("hold-words").textContent = on ? "Listening" : "Hold to talk";
    find("frame").classList.toggle("hearing", on);
    clearInterval(this.#meter);
    if (on) this.#meter = setInterval(() => this.#show(), METER_MS);
    else this.#show();
  }

  #show() {
    const level = this.#microphone?.level ?? 0;
    find("level-bar").style.transform = `scaleX(${level.toFixed(3)})`;
    find("level").setAttribute("aria-valuenow", String(Math.round(level * 10) * 10));
  }

  /** What is being spoken is cut off. */
  interrupt() {
    this.#saying?.abort();
    this.#connection.event({ type: "interrupt" });
  }

  async #file(input) {
    const [file] = input.files;
    input.value = "";
    if (!file || !this.active) return;
    this.#saying?.abort();
    const saying = new AbortController();
    this.#saying = saying;
    let samples;
    try {
      samples = await read(file);
    } catch {
      this.#status(words.NO_SOUND, true);
      return;
    }
    try {
      const line = await this.#connection.upward();
      this.#status(`It speaks ${file.name}, ${words.seconds(samples.length / RATE)} long.`, false);
      await say(samples, (block) => line.speak(block, RATE), saying.signal);
    } catch (error) {
      this.#status(words.refused(error), true);
    }
  }

  #end() {
    this.#saying?.abort();
    this.#holders.clear();
    this.#listen.checked = false;
    this.#tell();
    this.#microphone?.close();
    this.#microphone = null;
    this.#connection.microphone(null);
  }
}
