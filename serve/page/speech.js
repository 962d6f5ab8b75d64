// A sound file that the model is to speak: read here, sent ahead of real time, but not by much.

export const RATE = 24_000;
const BLOCK_S = 1;
const AHEAD_S = 20;
const LONGEST_S = 600;

/** The file's sound as s16 mono samples at RATE, at most ten minutes of it. Raises EncodingError when it holds none. */
export async function read(file) {
  const bytes = await file.arrayBuffer();
  // Decoding resamples to the context's rate, and mixing down to one channel is the destination's work.
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  const length = Math.min(decoded.length, LONGEST_S * RATE);
  const context = new OfflineAudioContext(1, length, RATE);
  const source = new AudioBufferSourceNode(context, { buffer: decoded });
  source.connect(context.destination);
  source.start();
  const mixed = (await context.startRendering()).getChannelData(0);
  return Int16Array.from(mixed, (sample) => Math.max(-32768, Math.min(32767, Math.round(sample * 32767))));
}

/** Sends samples by `send(block)` a second at a time, until all are sent or `signal` is aborted. */
export async function say(samples, send, signal) {
  const step = BLOCK_S * RATE;
  const began = performance.now();
  for (let at = 0; at < samples.length && !signal.aborted; at += step) {
    const ahead = at / RATE - (performance.now() - began) / 1000;
    if (ahead > AHEAD_S) await new Promise((done) => setTimeout(done, (ahead - AHEAD_S) * 1000));
    if (!signal.aborted) send(samples.slice(at, at + step).buffer);
  }
}
