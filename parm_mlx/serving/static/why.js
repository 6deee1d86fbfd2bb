// Why an answer reads as it does: each token shaded by how far the guide moved it, and a panel with the numbers.
import { $, make, visible } from "./dom.js";

const STRONG = 2; // The change of the log-probability that has the full shade: about 7 times as probable.

const DIRECTIONS = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** A token on its own, with what would be invisible. */
function readable(token) {
  const shown = visible(token).replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return make("bdi", {}, shown.replace(DIRECTIONS, (character) => `\\u${character.charCodeAt(0).toString(16)}`));
}

/** Whether a candidate is the token itself. Texts alone can differ where a token's text depends on those before it. */
const isSame = (candidate, token) => (candidate.id === undefined ? candidate.token === token.token : candidate.id === token.id);

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.1) return "< 0.1 %";
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}

function bar(name, logprob, className = "") {
  const filled = make("i", { className: "filled" });
  filled.style.width = `${100 * Math.exp(logprob)}%`;
  return make("div", { className: `bar ${className}` },
    make("span", { className: "name" }, name), make("span", { className: "track" }, filled), make("b", {}, percent(logprob)));
}

function candidates(title, list, chosen) {
  const rows = list.map((each) => bar(readable(each.token), each.logprob, isSame(each, chosen) ? "same" : ""));
  return make("section", {}, make("h4", {}, title), ...rows);
}

function panelContent(token) {
  const [likeliest] = token.base_top;
  const remark = isSame(likeliest, token) ? ["the same."] : ["“", readable(likeliest.token), "”."];
  return [
    make("p", { className: "said" }, make("strong", {}, readable(token.token)),
      ` ${percent(token.base)} → ${percent(token.logprob)}`),
    bar("base", token.base, "alone"), bar("guide", token.guide), bar("both together", token.logprob),
    make("p", { className: "remark" }, "The base alone would most likely have said ", ...remark),
    make("div", { className: "tops" }, candidates("base", token.base_top, token),
      candidates("guide", token.guide_top, token), candidates("both together", token.top, token)),
  ];
}

let anchor = null; // The token that the panel is about.

function place() {
  const panel = $("why-panel");
  const at = anchor.getClientRects()[0];
  const { width, height } = panel.getBoundingClientRect();
  const { clientWidth, clientHeight } = document.documentElement;
  const column = anchor.closest(".column")?.getBoundingClientRect();
  let left = Math.min(at.left, clientWidth - width - 8);
  let top = at.bottom + 8 + height > clientHeight ? at.top - height - 8 : at.bottom + 8;
  if (column) { // Beside the column, so that its text stays readable.
    const right = column.right + 8;
    const fits = right + width + 8 <= clientWidth;
    if (fits || column.left - width >= 16) [left, top] = [fits ? right : column.left - width - 8, Math.min(at.top, clientHeight - height - 8)];
  }
  panel.style.left = `${Math.max(8, left)}px`;
  panel.style.top = `${Math.max(8, top)}px`;
}

function showPanel(element, token) {
  const panel = $("why-panel");
  panel.replaceChildren(...panelContent(token));
  panel.style.setProperty("--tone", getComputedStyle(element).getPropertyValue("--tone"));
  panel.hidden = false;
  anchor = element;
  place();
}

document.addEventListener("scroll", () => { if (!$("why-panel").hidden) place(); }, { passive: true });

/** Whether there was one to hide. */
export function hidePanel() {
  const shown = !$("why-panel").hidden;
  $("why-panel").hidden = true;
  return shown;
}

function tokenSpan(token) {
  const span = make("span", { className: "token" }, visible(token.text));
  const moved = token.logprob - token.base;
  span.style.setProperty("--moved", Math.min(1, Math.abs(moved) / STRONG).toFixed(2));
  span.dataset.moved = moved < 0 ? "down" : "up";
  if (!isSame(token.base_top[0], token)) span.dataset.turned = "";
  span.tabIndex = -1;
  span.setAttribute("aria-describedby", "why-panel");
  return span;
}

/** The answer's text as tokens that can be pointed at, or walked through with the arrow keys. */
export function tokensView(explain) {
  const shown = explain.tokens.filter((token) => !token.thought && token.token)
    .map((token) => ({ ...token, text: token.token }));
  const spans = shown.map(tokenSpan);
  const view = make("span", { className: "tokens", role: "group", "aria-label": "Tokens; the arrow keys walk through them" }, ...spans);
  if (spans.length) spans[0].tabIndex = 0;

  const inspect = (element) => {
    const at = spans.indexOf(element);
    if (at >= 0) showPanel(element, shown[at]);
  };
  view.addEventListener("pointerover", (event) => inspect(event.target));
  view.addEventListener("pointerleave", () => {
    if (spans.includes(document.activeElement)) inspect(document.activeElement);
    else hidePanel();
  });
  view.addEventListener("focusin", (event) => inspect(event.target));
  view.addEventListener("focusout", hidePanel);
  view.addEventListener("keydown", (event) => {
    const at = spans.indexOf(event.target);
    const goal = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (!spans[goal]) return;
    event.preventDefault();
    spans[at].tabIndex = -1;
    spans[goal].tabIndex = 0;
    spans[goal].focus();
  });
  return view;
}

export const legend = () =>
  make("p", { className: "legend" },
    make("span", { className: "token", "data-moved": "up" }, "raised"), " and ",
    make("span", { className: "token", "data-moved": "down" }, "lowered"), " by the guide; ",
    make("span", { "data-turned": "" }, "underlined"), ": the base alone would most likely have said something else.");
