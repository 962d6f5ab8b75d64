// Runs in the audio thread: the microphone's samples as blocks of 20 ms, s16 mono.

const BLOCK_S = 0.02;

class Blocks extends AudioWorkletProcessor {
  #block = new Int16Array(Math.round(sampleRate * BLOCK_S));
  #filled = 0;

  process([input]) {
    for (const sample of input[0] ?? []) {
      this.#block[this.#filled] = Math.max(-32768, Math.min(32767, Math.round(sample * 32767)));
      this.#filled += 1;
      if (this.#filled === this.#block.length) {
        this.port.postMessage(this.#block.buffer, [this.#block.buffer]);
        this.#block = new Int16Array(Math.round(sampleRate * BLOCK_S));
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("blocks", Blocks);
