// The picture: the light around it, what covers it while there is none, and its sound.

import { find } from "./elements.js";

const HALF_LIT = 4;

const frame = find("frame");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Picture {
  #video;
  #glow = find("glow").getContext("2d");
  #frames = 0;

  /** @param video the element that plays. */
  constructor(video) {
    this.#video = video;
    find("unmute").addEventListener("click", () => {
      video.muted = false;
      find("unmute").hidden = true;
    });
  }

  /** A source of pictures is there; `hears`: sound is worth asking for. Browsers let a page that was not touched play without. */
  async play(hears) {
    const video = this.#video;
    try {
      video.muted = false;
      await video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return;
      video.muted = true;
      find("unmute").hidden = !hears;
      await video.play().catch(() => {});
    }
  }

  /** A frame is on the screen. */
  seen() {
    frame.classList.add("seen");
    this.#frames += 1;
    if (calm.matches || this.#frames % HALF_LIT) return;
    frame.classList.add("lit");
    this.#glow.drawImage(this.#video, 0, 0, 16, 16);
  }

  /** There is none. */
  blank() {
    frame.classList.remove("seen", "lit", "frozen");
    find("unmute").hidden = true;
  }
}
