// The panel for words: ready-made prompts, and a line to write one in.

import { find, make } from "./elements.js";

const ARTICLES = ["a", "an", "the"];

/** Names that fit on buttons: what all of them share says nothing. `a maze by day` beside `a maze by night` is `Day`. */
export function short(names) {
  const all = names.map((name) => name.split(/\s+/));
  return all.map((own, index) => {
    const left = own.filter((word) => !ARTICLES.includes(word) && !all.every((other) => other.includes(word)));
    const said = left.length ? left.join(" ") : names[index];
    return said[0].toUpperCase() + said.slice(1);
  });
}

export class Prompts {
  #connection;
  #field = find("prompt");

  constructor(connection) {
    this.#connection = connection;
    /** What was last asked for: the next session begins with it. */
    this.prompt = null;
    find("prompt-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(this.#field.value.trim());
    });
  }

  /** Draws what an offer knows. */
  draw({ presets = [], words = [] }) {
    this.prompt = null;
    this.#field.value = "";
    find("prompt-help").textContent = words.length ? `It knows ${words.length === 1 ? "one word" : `${words.length} words`}: ${words.join(", ")}.` : "";
    find("presets").hidden = presets.length === 0;
    const names = short(presets.map(({ name }) => name));
    find("presets").replaceChildren(...presets.map(({ prompt }, index) => make("button", {
      type: "button", class: "plain", "aria-pressed": "false", "data-prompt": prompt, title: prompt,
      onclick: () => {
        this.#field.value = prompt;
        this.#send(prompt);
      },
    }, names[index])));
  }

  #send(prompt) {
    if (!prompt) return;
    this.prompt = prompt;
    for (const button of find("presets").children) {
      button.setAttribute("aria-pressed", String(button.dataset.prompt === prompt));
    }
    this.#connection.event({ type: "prompt", prompt });
  }
}
