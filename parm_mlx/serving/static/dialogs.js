import { $, visible } from "./dom.js";

/** Shows a dialog; resolves with whether it was accepted. */
function open(dialog) {
  return new Promise((resolve) => {
    let accepted = false;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      accepted = true;
      dialog.close();
    };
    dialog.querySelector("[data-cancel]").onclick = () => dialog.close();
    dialog.onclose = () => resolve(accepted);
    dialog.showModal();
  });
}

export function confirmDeletion(text) {
  $("confirm-text").textContent = visible(text);
  return open($("confirm-dialog"));
}

let asking = null;

/** The key that the person gives, or null. Requests that need one at the same time share the question. */
export function askForKey() {
  asking ??= open($("key-dialog")).then((accepted) => {
    const key = $("key").value.trim();
    $("key").value = "";
    asking = null;
    return accepted && key ? key : null;
  });
  return asking;
}
