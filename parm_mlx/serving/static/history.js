// The list of conversations that the browser keeps.
import { confirmDeletion } from "./dialogs.js";
import { $, button, make, notify, visible } from "./dom.js";
import { title } from "./export.js";
import { deleteConversation, inTab, loadConversations, saveConversation } from "./store.js";

/** @param open Shows a conversation, or a new one for null. */
export function createHistory(open) {
  let kept = loadConversations();
  let current = null;
  const saved = new WeakMap(kept.map((conversation) => [conversation, conversation.changed]));

  function row(conversation) {
    const name = title(conversation);
    const choose = button(visible(name), () => open(conversation), { className: "quiet name", dir: "auto" });
    if (conversation.id === current) choose.setAttribute("aria-current", "true");
    const remove = button("×", async () => {
      if (!(await confirmDeletion(`Delete “${name}”?`))) return;
      if (conversation.id === current) open(null);
      deleteConversation(conversation);
      kept = kept.filter((other) => other !== conversation);
      show();
    }, { className: "quiet remove", "aria-label": `Delete ${visible(name)}` });
    return make("li", {}, choose, remove);
  }
  function show() {
    $("conversations").replaceChildren(...kept.map(row));
  }

  return {
    /** The conversation that this tab showed before it was loaded again. */
    last: () => kept.find(({ id }) => id === inTab.get("conversation")) ?? null,
    shown({ id }) {
      current = id;
      inTab.set("conversation", id);
      show();
    },
    /** Saves a conversation that changed; another tab may have a later state of the others. */
    keep(conversation) {
      if (saved.get(conversation) === conversation.changed) return;
      saved.set(conversation, conversation.changed);
      kept = [conversation, ...kept.filter((other) => other !== conversation)].sort((one, other) => other.changed - one.changed);
      notify(saveConversation(conversation) ? "" : "The browser has no room to keep this conversation. Export it, or delete others.");
    },
  };
}
