// The session that a tab has, for when it is loaded again.

import { look } from "./session.js";

const KEPT = "everframe.session";

/** Keeps a session: {id, secret, model}. */
export function keep({ id, secret, model }) {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ id, secret, model: model.id }));
  } catch {
    // Storage is switched off: a page that is loaded again begins anew.
  }
}

export function forget() {
  try {
    sessionStorage.removeItem(KEPT);
  } catch {
    // As above.
  }
}

/** The session that this tab had before it was loaded again, if it is still there and its model offered; else null. */
export async function left(offers) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT));
    const model = offers.find(({ id }) => id === kept?.model);
    if (!model) return null;
    const { state } = await look(kept);
    return ["queued", "starting", "running"].includes(state) ? { id: kept.id, secret: kept.secret, model } : null;
  } catch {
    return null;
  }
}
