// What a page shows, hears, says and sees, kept for measurements: each frame's pixels, the sound of both ways, key
// presses, and marks of the camera's pictures that it sent.
// All times are milliseconds of performance.now(). It is run before the page's own scripts, and changes nothing in them.
(() => {
  const SIDE = 64;
  const HELD_MS = 2000;
  const kept = { frames: [], pixels: [], said: [], heard: [], presses: [], sent: [], peer: null };

  /** Blocks of a track's samples: when each was there, and the samples as s16 of one channel. */
  async function listen(track, into) {
    const reader = new MediaStreamTrackProcessor({ track, maxBufferSize: HELD_MS / 10 }).readable.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const at = performance.now();
      const samples = new Float32Array(value.numberOfFrames);
      value.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
      const { timestamp, sampleRate } = value;
      value.close();
      into.push({ at, timestamp, rate: sampleRate, samples: Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767) });
    }
  }

  const devices = navigator.mediaDevices;
  if (devices) {
    const asked = devices.getUserMedia.bind(devices);
    devices.getUserMedia = async (wanted) => {
      const stream = await asked(wanted);
      // A copy of the track goes on when the page switches its own off.
      for (const track of stream.getAudioTracks()) listen(track.clone(), kept.said);
      return stream;
    };
  }

  const Peer = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Peer {
    constructor(...given) {
      super(...given);
      kept.peer = this;
      this.addEventListener("track", ({ track }) => track.kind === "audio" && listen(track, kept.heard));
    }
  };

  // A picture follows the message that announces it.
  const send = WebSocket.prototype.send;
  let announced = false;
  WebSocket.prototype.send = function (data) {
    if (announced) kept.sent.push(mark(new Uint8Array(data)));
    announced = typeof data === "string" && data.includes('"session.frame"');
    return send.call(this, data);
  };
  /** FNV-1a of 32 bits (RFC 9923). */
  const mark = (bytes) => bytes.reduce((found, byte) => Math.imul(found ^ byte, 16777619) >>> 0, 2166136261);

  addEventListener("keydown", ({ timeStamp, code, repeat }) => repeat || kept.presses.push({ at: timeStamp, code }), true);

  addEventListener("DOMContentLoaded", () => {
    const video = document.getElementById("picture");
    const canvas = new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
    const next = () => video.requestVideoFrameCallback((now, { expectedDisplayTime, mediaTime, rtpTimestamp, presentedFrames }) => {
      canvas.drawImage(video, 0, 0, SIDE, SIDE);
      kept.pixels.push(canvas.getImageData(0, 0, SIDE, SIDE).data);
      kept.frames.push([expectedDisplayTime ?? now, rtpTimestamp === undefined ? mediaTime : rtpTimestamp / 90_000, presentedFrames]);
      next();
    });
    next();
  });

  const base64 = (parts) => new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(",")[1] ?? "");
    reader.readAsDataURL(new Blob(parts));
  });
  const sound = async (blocks) => ({
    rate: blocks[0]?.rate ?? 48_000,
    blocks: blocks.map(({ at, timestamp, samples }) => [at, timestamp, samples.length]),
    samples: await base64(blocks.map(({ samples }) => samples)),
  });

  window.probe = {
    /** All that was kept, binary parts in base64. */
    take: async () => {
      // More comes while this is packed.
      const { frames, pixels, said, heard, presses } = Object.fromEntries(
        Object.entries(kept).map(([name, list]) => [name, Array.isArray(list) ? [...list] : list]));
      return { side: SIDE, frames, pixels: await base64(pixels), said: await sound(said), heard: await sound(heard), presses };
    },
    /** Marks of the pictures that were sent, in order. */
    sent: () => kept.sent,
    /** What the browser counts of the pictures that it receives; null without a call. */
    received: async () => {
      const all = kept.peer ? [...(await kept.peer.getStats()).values()] : [];
      return all.find(({ type, kind }) => type === "inbound-rtp" && kind === "video") ?? null;
    },
  };
})();
