// What the model is to see: a camera, a video file, or a test picture that moves. Drawn small, and made JPEG.

const QUALITY = 0.85;

/** The smallest size of a picture of `width` x `height` that covers `wide` x `high`, and no larger than it is. */
export function covering(width, height, wide, high) {
  const scale = Math.min(1, Math.max(wide / width, high / height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

/** The test picture: a ball that goes round before stripes that pass by, at `seconds`. */
export function draw(pen, width, height, seconds) {
  const stripes = 8;
  for (let i = 0; i <= stripes; i += 1) {
    pen.fillStyle = i % 2 ? "#2d6f8f" : "#e3d5b8";
    const at = ((i + (seconds % 2)) / stripes) * width;
    pen.fillRect(at - (2 * width) / stripes, 0, width / stripes + 1, height);
    pen.fillRect(at, 0, width / stripes + 1, height);
  }
  pen.fillStyle = "#d9482b";
  pen.beginPath();
  const turn = (seconds / 4) * 2 * Math.PI;
  pen.arc(width * (0.5 + 0.28 * Math.cos(turn)), height * (0.5 + 0.28 * Math.sin(turn)), Math.min(width, height) / 6, 0, 2 * Math.PI);
  pen.fill();
}

export class Camera {
  /** `camera`, `file`, `test`; null: it sees nothing. */
  kind = null;
  #canvas;
  #pen;
  #video = null;
  #stream = null;
  #address = null;
  #timer = null;
  #making = false;
  #round = 0;

  /** @param canvas that shows what goes up. */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
  }

  /** Whether this page may have a camera at all: browsers give it to https and localhost. */
  static get possible() {
    return window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);
  }

  /**
   * Begins to look, in place of what it looked at before. Raises what getUserMedia raises, and where a file does not play.
   *
   * @param kind `camera`, `file`, `test`.
   * @param form {width, height, fps}: the model's.
   * @param take(blob, at) is given JPEG and the seconds of performance.now() at which it was drawn.
   * @param file for `file`.
   */
  async open(kind, form, take, file = null) {
    this.close();
    const round = this.#round;
    if (kind !== "test") {
      const video = document.createElement("video");
      video.muted = video.playsInline = video.loop = true;
      if (kind === "camera") {
        const stream = await navigator.mediaDevices.getUserMedia({ video: { frameRate: { ideal: 30 }, facingMode: "user" } });
        if (round !== this.#round) {
          stop(stream);
          return;
        }
        this.#stream = video.srcObject = stream;
      } else {
        this.#address = URL.createObjectURL(file);
        video.src = this.#address;
      }
      try {
        await video.play();
      } catch (error) {
        if (round === this.#round) this.close();
        throw error;
      }
      if (round !== this.#round) return;
      this.#video = video;
    }
    this.kind = kind;
    this.#timer = setInterval(() => this.#look(form, take), 1000 / form.fps);
  }

  /** Draws what is seen now. One picture is made at a time: a browser that is too slow for all leaves some out. */
  #look({ width, height }, take) {
    // Nobody sees what becomes of it, and a server that is told nothing knows that nobody is here.
    if (document.hidden) return;
    const canvas = this.#canvas;
    const video = this.#video;
    const [wide, high] = video ? covering(video.videoWidth || width, video.videoHeight || height, width, height) : [width, height];
    if (canvas.width !== wide) canvas.width = wide;
    if (canvas.height !== high) canvas.height = high;
    const now = performance.now() / 1000;
    if (video) this.#pen.drawImage(video, 0, 0, wide, high);
    else draw(this.#pen, wide, high, now);
    if (this.#making) return;
    this.#making = true;
    const round = this.#round;
    canvas.toBlob((blob) => {
      this.#making = false;
      if (blob && round === this.#round) take(blob, now);
    }, "image/jpeg", QUALITY);
  }

  /** Sees nothing any more; a camera's light goes out. */
  close() {
    this.#round += 1;
    clearInterval(this.#timer);
    if (this.#stream) stop(this.#stream);
    if (this.#video) this.#video.srcObject = null;
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#stream = this.#video = this.#address = this.kind = null;
    this.#pen.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
