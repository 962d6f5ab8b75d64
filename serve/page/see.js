// The panel for what the model is to see, and the picture of it beside the model's.

import { Camera } from "./camera.js";
import { find } from "./elements.js";
import * as words from "./words.js";

const AGAIN_S = 1;
const RECENT_S = 2;
const BUTTONS = { camera: "see-camera", test: "see-test", null: "see-off" };

export class See {
  #connection;
  #status;
  #filmed;
  #chosen;
  #camera = new Camera(find("own"));
  #form = null;
  #running = false;
  #sending = false;
  #notBefore = 0;
  #sent = [];

  /**
   * `status(text, bad)` says something to the person; `filmed(at)` is told of each picture that went up, `chosen()` when
   * it sees something else.
   */
  constructor(connection, status, filmed, chosen) {
    this.#connection = connection;
    this.#chosen = chosen;
    this.#status = status;
    this.#filmed = filmed;
    find("see-camera").addEventListener("click", () => this.choose("camera"));
    find("see-test").addEventListener("click", () => this.choose("test"));
    find("see-off").addEventListener("click", () => this.choose(null));
    find("see-file").addEventListener("change", ({ target }) => {
      const [file] = target.files;
      target.value = "";
      if (file) this.choose("file", file);
    });
  }

  /** Another model was chosen: {sees, width, height, fps}. */
  draw(offer) {
    this.choose(null);
    this.#form = offer.sees ? offer : null;
    find("see").hidden = find("own-frame").hidden = !offer.sees;
    find("pair").classList.toggle("two", Boolean(offer.sees));
  }

  /** Whether a session runs: a camera is let go of with it. */
  enable(running) {
    if (this.#running && !running) this.choose(null);
    this.#running = running;
  }

  /** Pictures a second that went up lately; null: it sees nothing. */
  get rate() {
    if (!this.#camera.kind) return null;
    const since = performance.now() - RECENT_S * 1000;
    this.#sent = this.#sent.filter((at) => at > since);
    return this.#sent.length / RECENT_S;
  }

  /** What it sees from now on: `camera`, `file`, `test`, or null: nothing. Never raises. */
  async choose(kind, file = null) {
    let trouble = kind === "camera" && !Camera.possible ? words.INSECURE_CAMERA : null;
    if (kind === null || !this.#form) this.#camera.close();
    else if (!trouble) {
      try {
        await this.#camera.open(kind, this.#form, (blob, at) => this.#take(blob, at), file);
      } catch (error) {
        console.warn(error);
        trouble = kind === "camera" ? words.NO_CAMERA : words.NO_VIDEO;
      }
    }
    // Without a camera the page still shows what the model does.
    if (trouble && kind === "camera") await this.choose("test");
    this.#tell();
    if (trouble) this.#status(trouble, true);
    else this.#chosen();
  }

  #tell() {
    const { kind } = this.#camera;
    for (const [name, id] of Object.entries(BUTTONS)) find(id).setAttribute("aria-pressed", String(name === String(kind)));
    find("own-frame").classList.toggle("seen", kind !== null);
  }

  async #take(blob, at) {
    // A picture that waits behind another is old when its turn comes.
    if (this.#sending || performance.now() < this.#notBefore || this.#connection.state !== "live") return;
    this.#sending = true;
    try {
      const line = await this.#connection.upward();
      if (line.see(await blob.arrayBuffer(), at)) {
        this.#sent.push(performance.now());
        this.#filmed(at);
      }
    } catch (error) {
      this.#notBefore = performance.now() + AGAIN_S * 1000;
      if (this.#connection.state === "live") this.#status(words.refused(error), true);
    } finally {
      this.#sending = false;
    }
  }
}
