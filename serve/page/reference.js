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
    this.#status(this.#running() ? words.PICTURE_NOW : words.PICTURE_NEXT, false);
    this.draw();
  }

  /** The picture's name at the server, which keeps it for ten minutes only; null: there is none. Raises Refused. */
  async id() {
    if (!this.#file) return null;
    if (!this.#sent || performance.now() - this.#sent.at > KEPT_S * 1000) {
      this.#sent = { id: (await upload(this.#file)).id, at: performance.now() };
    }
    return this.#sent.id;
  }

  clear() {
    URL.revokeObjectURL(this.#address);
    this.#file = this.#sent = this.#address = null;
    find("image-seen").removeAttribute("src");
    find("image-words").textContent = "Choose a picture of a face, or drop one here";
    this.draw();
  }

  /** Shows what can be done with it now. */
  draw() {
    find("image-seen").hidden = find("image-away").hidden = !this.#file;
    find("anew").hidden = !this.#file || !this.#running();
  }
}
