import { getSteering } from "./api.js";
import { createChat } from "./chat.js";
import { $, button, focusQuestion, make, notify } from "./dom.js";
import { download } from "./export.js";
import { createHistory } from "./history.js";
import { createSettings } from "./settings.js";
import { createSteering } from "./steering.js";
import { read, write } from "./store.js";
import { hidePanel } from "./why.js";

const EXAMPLES = ["What is the most common mistake people make with a kite?", "Tell me about thunder.", "Can you explain onions to a child?"];
const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function bindTheme() {
  const root = document.documentElement;
  const show = () => { $("theme").textContent = THEMES[root.dataset.theme] ?? THEMES.auto; };
  $("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    root.dataset.theme = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    write("theme", root.dataset.theme);
    show();
  });
  show();
}

function bindMenu() {
  const open = (wanted) => {
    document.body.classList.toggle("menu-open", wanted);
    $("menu").setAttribute("aria-expanded", wanted);
  };
  $("menu").addEventListener("click", () => open(!document.body.classList.contains("menu-open")));
  $("curtain").addEventListener("click", () => open(false));
  return () => open(false);
}

function welcomeText(objectives) {
  const same = "The model itself stays as it is.";
  if (objectives.length === 0) return "No guide is loaded: the model answers alone.";
  if (objectives.length === 1) return `A guide moves its answers towards ${objectives[0]} while it writes. ${same}`;
  if (objectives.length === 2) return `Move the slider between ${objectives[1]} and ${objectives[0]}, and see how the answer changes. ${same}`;
  return `Mix ${objectives.slice(0, -1).join(", ")} and ${objectives.at(-1)}, and see how the answer changes. ${same}`;
}

function fitQuestion() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight + 2}px`;
}

function start(server) {
  const closeMenu = bindMenu();
  const key = `settings.${server.model}`;
  const stored = read(key);
  const defaults = { base: server.alpha === "base", weights: typeof server.alpha === "object" ? server.alpha : null };
  const remember = () => write(key, { ...settings, steering: steering.stored() });
  const settings = createSettings(server, stored, () => remember());
  const steering = createSteering(server.objectives, stored?.steering ?? defaults, () => { remember(); chat.steered(); });
  const chat = createChat({ server, settings, steering, changed: follow });
  const history = createHistory((conversation) => {
    chat.open(conversation);
    closeMenu();
    focusQuestion();
  });

  function follow() {
    const { conversation, busy } = chat;
    const asked = conversation.turns.length > 0;
    if (asked) history.keep(conversation);
    history.shown(conversation);
    $("welcome").hidden = asked;
    $("export").hidden = !asked;
    $("send").hidden = busy;
    $("stop").hidden = !busy;
    enable();
  }
  function enable() {
    const written = $("question").value.trim() !== "";
    $("send").disabled = !written;
    $("compare").disabled = chat.busy || (!written && chat.conversation.turns.length === 0);
  }
  function take(action) {
    const question = $("question").value.trim();
    if (chat.busy) return;
    $("question").value = "";
    $("settings").open = false;
    fitQuestion();
    action(question);
    focusQuestion();
  }
  const send = () => { if ($("question").value.trim()) take(chat.ask); };

  $("question").addEventListener("input", () => { fitQuestion(); enable(); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("send").addEventListener("click", send);
  $("compare").addEventListener("click", () => take(chat.compare));
  $("stop").addEventListener("click", () => { chat.stop(); focusQuestion(); });
  $("new").addEventListener("click", () => { chat.open(null); closeMenu(); focusQuestion(); });
  $("export").addEventListener("click", () => download(chat.conversation, chat.messages(), server.model));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (!hidePanel()) chat.stop();
    closeMenu();
  });
  window.addEventListener("pagehide", () => { if (chat.busy) chat.touch(); });

  document.title = `${server.model} – parm-mlx`;
  $("model").textContent = $("welcome-model").textContent = server.model;
  $("welcome-text").textContent = welcomeText(server.objectives);
  $("examples").replaceChildren(...EXAMPLES.map((example) => make("li", {}, button(example, () => take(() => chat.ask(example))))));
  $("compare").hidden = server.objectives.length === 0;
  $("composer").hidden = false;
  steering.update();
  chat.open(history.last());
  focusQuestion();
}

async function connect() {
  notify("");
  let server;
  try {
    server = await getSteering();
  } catch (error) {
    notify(error.message);
    $("notice").append(" ", button("Try again", connect));
    return;
  }
  start(server);
}

bindTheme();
connect();
