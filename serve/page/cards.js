// The models as cards to choose from.

import { drawing, find, make } from "./elements.js";
import * as words from "./words.js";

/** The drawing that stands for a model. */
export const art = ({ hears, sees, actions = [] }) => (sees ? "camera" : hears ? "avatar" : actions.length > 1 ? "world" : "film");

/** Draws a card for each offer and calls `chosen(offer)` with the first, and with what is chosen later. */
export function draw(offers, chosen) {
  const cards = find("cards");
  for (const old of cards.querySelectorAll(".card")) old.remove();
  cards.append(...offers.map((offer, index) => make("label", { class: "card" },
    make("input", { type: "radio", name: "model", value: offer.id, checked: index === 0, onchange: () => chosen(offer) }),
    drawing(art(offer), "0 0 120 120"),
    make("span", {}, make("b", {}, words.title(offer.id)), make("small", {}, words.kind(offer))))));
  if (offers.length) chosen(offers[0]);
}

/** Chooses the card of a model, as a person would. */
export function choose(id) {
  for (const input of find("cards").querySelectorAll("input")) {
    if (input.value !== id || input.checked) continue;
    input.checked = true;
    input.dispatchEvent(new Event("change"));
  }
}
