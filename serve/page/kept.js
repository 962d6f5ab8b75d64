// The session that a tab has, for when it is loaded again.

import { SESSION, had, look } from "./session.js";

/** Keeps a session: {id, secret, model}. */
export function keep({ id, secret, model }) {
  try {
    sessionStorage.setItem(SESSION, JSON.stringify({ id, secret, model: model.id }));
  } catch {
    // Storage is switched off: a page that is loaded again begins anew.
  }
}

export function forget() {
  try {
    sessionStorage.removeItem(SESSION);
  } catch {
    // As above.
  }
}

/** The session that this tab had before it was loaded again, or that its address names, if it is still there and its model offered; else null. */
export async function left(offers) {
  try {
    const kept = had();
    if (!kept) return null;
    const { state, model: name } = await look(kept);
    const model = offers.find(({ id }) => id === name);
    if (!model) return null;
    return ["queued", "starting", "running"].includes(state) ? { id: kept.id, secret: kept.secret, model } : null;
  } catch {
    return null;
  }
}
