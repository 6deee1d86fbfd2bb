// One answer: how it is asked for, and how it is shown.
import { chip, describe, tone } from "./alpha.js";
import { complete } from "./api.js";
import { announce, button, keepingEnd, make, short, visible } from "./dom.js";
import { copy } from "./export.js";
import { hidePanel, legend, tokensView } from "./why.js";

/** An answer that is about to be asked for. It holds its settings, and is kept in the browser as it is. */
export function newAnswer(alpha, { beta, temperature, maxTokens, seed, think }) {
  return { alpha, beta, temperature, maxTokens, seed, think, text: "", thought: "", state: "streaming", error: null,
    cut: false, tokens: null, speed: null, explain: null };
}

function requestFor(answer, messages, server) {
  const request = { model: server.model, messages, stream: true, stream_options: { include_usage: true },
    temperature: answer.temperature, max_tokens: answer.maxTokens };
  if (answer.seed !== null) request.seed = answer.seed;
  if (server.thinks && answer.think !== null) request.enable_thinking = answer.think;
  if (server.objectives.length > 0) {
    request.alpha = answer.alpha;
    if (answer.alpha !== "base") {
      request.explain = "parts";
      if (answer.beta !== null) request.beta = answer.beta;
    }
  }
  return request;
}

/** Asks the server, and writes what comes into the answer and its view. */
export async function generate(answer, messages, server, signal, view) {
  let first = null;
  let latest = null;
  try {
    const busy = (seconds) => view.wait(`The server is busy; trying again in ${seconds} s …`);
    for await (const chunk of complete(requestFor(answer, messages, server), signal, busy)) {
      if (chunk.usage) {
        answer.tokens = chunk.usage.completion_tokens;
        const seconds = (latest - first) / 1000;
        answer.speed = seconds > 0.05 ? (answer.tokens - 1) / seconds : null;
      }
      for (const { delta, finish_reason: reason, explain } of chunk.choices) {
        const content = delta?.content ?? "";
        const thought = delta?.reasoning_content ?? "";
        if (content || thought) {
          latest = performance.now();
          first ??= latest;
        }
        answer.text += content;
        answer.thought += thought;
        view.grow(content, thought);
        if (reason) answer.cut = reason === "length";
        if (explain) answer.explain = explain;
      }
    }
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "error";
    answer.error = signal.aborted ? null : error.message;
  }
  view.finish();
  if (answer.state === "done") announce(`${answer.alpha ? `${describe(answer.alpha)}: ` : ""}${answer.text}`);
}

function facts(answer) {
  const parts = [];
  if (answer.beta && answer.alpha && answer.alpha !== "base") parts.push(`β ${short(answer.beta)}`);
  parts.push(`temperature ${short(answer.temperature)}`);
  if (answer.tokens !== null) parts.push(`${answer.tokens} tokens${answer.cut ? " (cut off)" : ""}`);
  if (answer.speed !== null) parts.push(`${answer.speed.toFixed(answer.speed < 10 ? 1 : 0)} tokens/s`);
  if (answer.state === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function thoughtView(answer) {
  const text = make("div", { className: "thought-text", dir: "auto" }, visible(answer.thought));
  const element = make("details", { className: "thought", hidden: !answer.thought }, make("summary", {}, "Thoughts"), text);
  return { element, text };
}

/** @param actions What can be done with it here: any of choose, remove, retry. */
export function answerView(answer, actions) {
  const element = make("article", { className: "answer", tabIndex: -1 });
  element.style.setProperty("--tone", tone(answer.alpha));
  if (answer.alpha) element.dataset.alpha = describe(answer.alpha);
  let text, thought, notice;
  let why = false;

  function showText() {
    const explained = why && answer.explain;
    text.replaceChildren(explained ? tokensView(answer.explain) : visible(answer.text));
    notice.replaceChildren(...(explained ? [legend()] : []));
  }
  function whyToggle() {
    if (!Array.isArray(answer.explain?.tokens)) return null;
    const toggle = button("Why", () => {
      why = !why;
      toggle.setAttribute("aria-pressed", why);
      hidePanel();
      showText();
    }, { className: "why-toggle", title: "How far the guide moved each token", "aria-pressed": String(why) });
    return toggle;
  }
  function copyButton() {
    if (!answer.text) return null;
    const made = button("Copy", async () => {
      await copy(answer.text);
      made.textContent = "Copied";
      setTimeout(() => { made.textContent = "Copy"; }, 1500);
    });
    made.dataset.action = "copy";
    return made;
  }
  function buttons() {
    const { choose, chosen, retry } = actions();
    const streaming = answer.state === "streaming";
    return [
      streaming ? null : whyToggle(),
      streaming ? null : copyButton(),
      retry && !streaming ? button("Retry", retry, { "data-action": "retry" }) : null,
      choose || chosen ? button(chosen ? "Continues from this" : "Continue with this", choose ?? null, {
        className: "choose", "aria-pressed": String(chosen), disabled: !choose }) : null,
    ];
  }
  function show() {
    const { remove, chosen, among } = actions();
    element.dataset.state = answer.state;
    element.classList.toggle("column", among > 1);
    element.classList.toggle("chosen", among > 1 && chosen);
    element.setAttribute("aria-busy", answer.state === "streaming");
    const label = answer.alpha ? chip(answer.alpha) : null;
    const cross = remove ? button("×", remove, { className: "remove quiet", "aria-label": `Remove the answer at ${describe(answer.alpha)}` }) : null;
    const thoughts = thoughtView(answer);
    text = make("div", { className: "text", dir: "auto" });
    thought = thoughts;
    notice = make("div", { className: "notice" });
    showText();
    element.replaceChildren(
      make("header", {}, ...[label, cross].filter(Boolean)), thoughts.element, text, notice,
      ...(answer.error ? [make("p", { className: "error", role: "alert" }, visible(answer.error))] : []),
      make("footer", {}, make("span", { className: "facts" }, facts(answer)), ...buttons().filter(Boolean)));
  }
  function append(content, thoughtContent) {
    notice.replaceChildren();
    if (content) text.append(visible(content));
    if (thoughtContent) {
      thought.element.hidden = false;
      thought.text.append(visible(thoughtContent));
    }
  }
  /** A long answer is followed to its end; of several, the first stays in sight. */
  const follow = (change) => (actions().among > 1 ? change() : keepingEnd(change));
  const grow = (content, thoughtContent) => follow(() => append(content, thoughtContent));
  const finish = () => follow(show);
  const wait = (message) => notice.replaceChildren(make("p", { className: "waiting", role: "status" }, message));

  show();
  return { element, show, grow, finish, wait };
}
