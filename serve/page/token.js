// The form that asks for the server's token, in place of all that is of no use without one.

import { find } from "./elements.js";
import { keepToken, token } from "./session.js";
import * as words from "./words.js";

const form = find("token-form");

/** Whether it is there. */
export const wanted = () => !form.hidden;

/** The server refused the token of this page, or there is none. */
export function ask() {
  find("token-bad").textContent = token() === null ? "" : words.TOKEN_WRONG;
  keepToken(null);
  form.hidden = false;
  find("live").hidden = find("choice").hidden = true;
  find("token").focus();
}

/** `given()` is called when a person has typed one. */
export function listen(given) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(find("token").value.trim());
    form.hidden = true;
    given();
  });
}
