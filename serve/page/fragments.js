// Reads from fragments of an mp4 where its key frames are (ISO/IEC 14496-12): only before one may what is old be dropped.

const DATA_OFFSET = 0x1;
const FIRST_FLAGS = 0x4;
const FIELDS = { duration: 0x100, size: 0x200, flags: 0x400, offset: 0x800 };
const NOT_SYNC = 0x10000;

export class KeyTimes {
  #track = null;
  #scale = 1;

  /** Times of key frames in an init segment, which has none, or in a fragment: seconds. */
  read(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const found = [];
    for (const box of boxes(view, 0, view.byteLength)) {
      if (box.type === "moov") this.#tracks(view, box);
      if (box.type === "moof") found.push(...this.#keys(view, box));
    }
    return found;
  }

  #tracks(view, moov) {
    for (const trak of inside(view, moov, "trak")) {
      const [mdia] = inside(view, trak, "mdia");
      const [handler] = inside(view, mdia, "hdlr");
      if (name(view, handler.from + 8) !== "vide") continue;
      const [tkhd] = inside(view, trak, "tkhd");
      const [mdhd] = inside(view, mdia, "mdhd");
      this.#track = view.getUint32(tkhd.from + (view.getUint8(tkhd.from) ? 20 : 12));
      this.#scale = view.getUint32(mdhd.from + (view.getUint8(mdhd.from) ? 20 : 12));
    }
  }

  #keys(view, moof) {
    const found = [];
    for (const traf of inside(view, moof, "traf")) {
      const [tfhd] = inside(view, traf, "tfhd");
      const [tfdt] = inside(view, traf, "tfdt");
      if (!tfdt || view.getUint32(tfhd.from + 4) !== this.#track) continue;
      let time = view.getUint8(tfdt.from) ? Number(view.getBigUint64(tfdt.from + 4)) : view.getUint32(tfdt.from + 4);
      for (const trun of inside(view, traf, "trun")) {
        for (const { duration, flags } of samples(view, trun)) {
          if ((flags & NOT_SYNC) === 0) found.push(time / this.#scale);
          time += duration;
        }
      }
    }
    return found;
  }
}

/** What a table says of each sample; one that gives no flags is taken for none to begin with. */
function* samples(view, trun) {
  const told = view.getUint32(trun.from) & 0xffffff;
  const count = view.getUint32(trun.from + 4);
  let at = trun.from + 8 + (told & DATA_OFFSET ? 4 : 0);
  const first = told & FIRST_FLAGS ? view.getUint32(at) : NOT_SYNC;
  at += told & FIRST_FLAGS ? 4 : 0;
  for (let index = 0; index < count; index += 1) {
    const sample = { duration: 0, flags: index === 0 ? first : NOT_SYNC };
    for (const [field, bit] of Object.entries(FIELDS)) {
      if ((told & bit) === 0) continue;
      sample[field] = view.getUint32(at);
      at += 4;
    }
    yield sample;
  }
}

function* boxes(view, from, to) {
  while (from + 8 <= to) {
    const size = view.getUint32(from);
    if (size < 8 || from + size > to) return;
    yield { type: name(view, from + 4), from: from + 8, to: from + size };
    from += size;
  }
}

const inside = (view, { from, to }, type) => [...boxes(view, from, to)].filter((box) => box.type === type);

const name = (view, at) => String.fromCharCode(...[0, 1, 2, 3].map((index) => view.getUint8(at + index)));
