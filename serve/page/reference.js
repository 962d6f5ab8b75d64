// The panel for a picture that a session begins with.

import { find } from "./elements.js";
import { upload } from "./session.js";
import * as words from "./words.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];
const KEPT_S = 540;

export class Reference {
  #status;
  #running;
  #file = null;
  #sent = null;
  #address = null;
  #said = words.picture({});

  /** `status(text, bad)` says something; `running()`: whether a session runs; `anew()` starts one anew. */
  constructor(status, running, anew) {
    this.#status = status;
    this.#running = running;
    const drop = find("drop");
    find("image").addEventListener("change", ({ target }) => {
      this.#take(target.files[0]);
      target.value = "";
    });
    // A picture that misses the field would be opened in place of this page.
    for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
    for (const name of ["dragenter", "dragover"]) {
      drop.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    }
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      this.#take(event.dataTransfer.files[0]);
    });
    find("anew").addEventListener("click", anew);
    find("image-away").addEventListener("click", () => this.clear());
  }

  async #take(file) {
    if (!file) return;
    if (!KINDS.includes(file.type)) {
      this.#status(words.NO_PICTURE, true);
      return;
    }
    this.#file = file;
    this.#sent = null;
    try {
      await this.id();
    } catch (error) {
      this.clear();
      this.#status(words.refused(error), true);
      return;
    }
    URL.revokeObjectURL(this.#address);
    this.#address = URL.createObjectURL(file);
    find("image-seen").src = this.#address;
    find("image-seen").alt = `Your picture, ${file.name}`;
    find("image-words").textContent = `${file.name}. Choose another one, or drop it here`;
    this.#status(this.#running() ? this.#said.later : words.PICTURE_NEXT, false);
    this.show();
  }

  /** The picture's name at the server, which keeps it for ten minutes only; null: there is none. Raises Refused. */
  async id() {
    if (!this.#file) return null;
    if (!this.#sent || performance.now() - this.#sent.at > KEPT_S * 1000) {
      this.#sent = { id: (await upload(this.#file)).id, at: performance.now() };
    }
    return this.#sent.id;
  }

  /** Whether there is one. */
  get chosen() {
    return this.#file !== null;
  }

  clear() {
    URL.revokeObjectURL(this.#address);
    this.#file = this.#sent = this.#address = null;
    find("image-seen").removeAttribute("src");
    find("image-words").textContent = this.#said.choose;
    this.show();
  }

  /** Another model was chosen: what pictures are to it. One that was chosen stays. */
  draw(offer) {
    this.#said = words.picture(offer);
    find("reference").hidden = !offer.picture;
    find("image-help").textContent = this.#said.help;
    if (!this.#file) find("image-words").textContent = this.#said.choose;
  }

  /** Shows what can be done with it now. */
  show() {
    find("image-seen").hidden = find("image-away").hidden = !this.#file;
    find("anew").hidden = !this.#file || !this.#running();
  }
}
