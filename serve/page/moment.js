// The stream stands still for a moment: its workers change. The last picture stays, and the page says that it goes on.

import { find } from "./elements.js";

const frame = find("frame");

/** It does so, or not. */
export const stand = (still) => frame.classList.toggle("frozen", still);

/** Whether it does. */
export const stands = () => frame.classList.contains("frozen");

/** What the server says of it: `session.notice`. */
export function noticed({ kind }) {
  if (kind === "resumed" || !stands()) stand(kind === "frozen");
}
