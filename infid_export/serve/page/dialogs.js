// The two dialogs: the token, and a confirmation before something is deleted.
import { fill } from "./errors.js";

const byId = (id) => document.getElementById(id);

/** Open a dialog and return what `accept` gives, or null when it is closed in another way. */
function ask(dialog, accept) {
  return new Promise((resolve) => {
    let answer = null;
    const controller = new AbortController();
    accept((value) => {
      answer = value;
      dialog.close();
    }, controller.signal);
    dialog.addEventListener("close", () => {
      controller.abort();
      resolve(answer);
    }, { once: true });
    dialog.showModal();
  });
}

/** Ask for the server's token; `rejected` says that the last one was not accepted. */
export function askToken(rejected) {
  const field = byId("token");
  field.value = "";
  byId("token-problem").replaceChildren();
  const wrong = { message: "The server did not accept the token.", fix: "Check it for typing errors." };
  if (rejected) fill(byId("token-problem"), wrong);
  return ask(byId("token-dialog"), (answer, signal) => {
    byId("token-cancel").addEventListener("click", () => answer(null), { signal });
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      answer(field.value.trim());
    }, { signal });
  });
}

/** Ask before something is deleted; true if the person agrees. */
export function confirmed(title, text, action) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = action;
  return ask(byId("confirm-dialog"), (answer, signal) => {
    byId("confirm-no").addEventListener("click", () => answer(null), { signal });
    byId("confirm-yes").addEventListener("click", () => answer(true), { signal });
  });
}
