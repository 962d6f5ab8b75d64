// Mouse and fingers on the picture: a mouse that it holds (pointer lock), and a drag. Both say by how many pixels they move.

/** Pixels up to which a press was a click, and no drag. */
const STILL = 4;

export class Gaze {
  #place;
  #moved;
  #held;
  #refused;
  #drag = null;
  #able = false;

  /**
   * @param place what is clicked and dragged; buttons in it stay what they are.
   * @param moved(across, down) pixels, to the right and down.
   * @param held(on) the picture holds the mouse, or has let go of it.
   * @param refused() the browser does not give it the mouse.
   */
  constructor(place, { moved, held, refused }) {
    this.#place = place;
    this.#moved = moved;
    this.#held = held;
    this.#refused = refused;
    place.addEventListener("pointerdown", (event) => this.#begin(event));
    place.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) place.addEventListener(end, (event) => this.#end(event));
    document.addEventListener("mousemove", (event) => this.holds && this.#moved(event.movementX, event.movementY));
    document.addEventListener("pointerlockchange", () => {
      place.classList.toggle("held", this.holds);
      this.#held(this.holds);
    });
  }

  /** Whether there is anything to look around in now. */
  set able(on) {
    this.#able = on;
    this.#drag = null;
    this.#place.classList.toggle("gaze", on);
  }

  /** Whether the picture holds the mouse. */
  get holds() {
    return document.pointerLockElement === this.#place;
  }

  #begin(event) {
    if (!this.#able || this.holds || this.#drag || event.button !== 0 || event.target.closest("button")) return;
    this.#place.setPointerCapture(event.pointerId);
    this.#drag = { id: event.pointerId, x: event.clientX, y: event.clientY, far: 0 };
  }

  #move({ pointerId, clientX, clientY }) {
    const drag = this.#drag;
    if (drag?.id !== pointerId || this.holds) return;
    const [across, down] = [clientX - drag.x, clientY - drag.y];
    drag.far += Math.hypot(across, down);
    [drag.x, drag.y] = [clientX, clientY];
    if (drag.far > STILL) this.#moved(across, down);
  }

  #end({ type, pointerId, pointerType }) {
    const drag = this.#drag;
    if (drag?.id !== pointerId) return;
    this.#drag = null;
    if (type === "pointerup" && pointerType === "mouse" && drag.far <= STILL) this.hold();
  }

  /** The picture is to hold the mouse. A browser that does not give it leaves dragging. */
  async hold() {
    if (!this.#able || this.holds) return;
    try {
      await this.#place.requestPointerLock();
    } catch (error) {
      console.warn(error);
      this.#refused();
    }
  }

  /** The mouse is everybody's again. */
  leave() {
    if (this.holds) document.exitPointerLock();
  }
}
