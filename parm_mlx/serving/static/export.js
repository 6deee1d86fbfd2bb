import { make } from "./dom.js";

export const title = (conversation) => conversation.turns[0].question.replace(/\s+/g, " ").trim().slice(0, 80);

/** Saves a conversation as a file: the messages as they were sent, and every answer with its settings. */
export function download(conversation, messages, model) {
  const content = { model, title: title(conversation), changed: new Date(conversation.changed).toISOString(), messages,
    turns: conversation.turns };
  const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  const name = title(conversation).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  make("a", { href: address, download: `${name || "conversation"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page that came over plain HTTP from another machine has no clipboard of that kind.
    const area = make("textarea", { className: "hidden", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
