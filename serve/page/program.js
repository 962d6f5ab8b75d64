// What programs have of the page, for measurements: `window.everframe` is
//   transport   `rtc`, `ws`, or null while there is no line
//   session     {id, model}, or null
//   state       `idle`, `opening`, `waiting`, `joining`, `live`, `lost`
//   status      the words that a person sees
//   stats()     {fps, framesSeen, chunks, freezes, longestFreeze_s, still_s, controlLatencies, serverLatencies,
//                cameraLatencies, lateness, frames, roundTrip_s, buffer_s}: seconds; `controlLatencies` from a press to the
//                first frame that shows it; `serverLatencies` the server's own, to the frame's leaving;
//                `cameraLatencies` from a picture's being taken here to its being shown, made anew; `frames` the newest
//                few thousand as {t (ms of performance.now(), when it was on the screen), mediaTime (s since the
//                session's start, where known)}; freezes are gaps between frames on the screen of more than 0.3 s
//   start({model, prompt, seed, image}), again(), stop(), press(key), release(key), send(event),
//   see(kind): what the model sees from now on, `camera`, `test` or null

import { find } from "./elements.js";

/** It; `start(wanted)` begins a session, `again()` begins it once more. */
export const face = (connection, watch, drive, see, { start, again }) => ({
  get transport() { return connection.line?.kind ?? null; },
  get session() { return connection.session && { id: connection.session.id, model: connection.session.model.id }; },
  get state() { return connection.state; },
  get status() { return find("status").textContent; },
  stats: () => ({
    fps: watch.fps, framesSeen: watch.framesSeen, chunks: watch.chunks, freezes: watch.freezes,
    longestFreeze_s: watch.longestFreeze, still_s: watch.still, controlLatencies: [...watch.controlLatencies],
    serverLatencies: [...watch.serverLatencies], cameraLatencies: [...watch.cameraLatencies],
    lateness: [...watch.lateness], frames: [...watch.frames],
    roundTrip_s: connection.line?.roundTrip ?? null, buffer_s: connection.line?.ahead ?? null,
  }),
  start,
  again,
  stop: () => connection.stop(),
  press: (key) => drive.press(key),
  release: (key) => drive.release(key),
  send: (event) => connection.event(event),
  see: (kind) => see.choose(kind),
});
