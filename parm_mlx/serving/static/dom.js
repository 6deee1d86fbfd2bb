export const $ = (id) => document.getElementById(id);

/** An element; what isn't one of its properties becomes an attribute. Children are elements or text, never HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const button = (text, onclick, properties = {}) => make("button", { type: "button", onclick, ...properties }, text);

/** Text with its control characters written out: an escape sequence of a terminal reads \x1b[31m. */
export const visible = (text) =>
  text.replaceAll("\r\n", "\n").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, (character) =>
    `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);

export const short = (value) => String(Number(value.toFixed(2)));

/** Changes the page, and stays at its end if it was there. */
export function keepingEnd(change) {
  const page = document.documentElement;
  const atEnd = window.scrollY + window.innerHeight >= page.scrollHeight - 4;
  change();
  if (atEnd) window.scrollTo(0, page.scrollHeight);
}

/** Where the keyboard of a phone would cover the page, the question waits to be touched. */
export function focusQuestion() {
  if (matchMedia("(hover: hover)").matches) $("question").focus();
}

export function announce(text) {
  $("announce").textContent = text;
}

export function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}
