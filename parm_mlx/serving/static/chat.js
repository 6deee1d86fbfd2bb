// The conversation: turns of a question and one or more answers, of which one is gone on from.
import { chip, comparison, distance, isOf, same } from "./alpha.js";
import { answerView, generate, newAnswer } from "./answer.js";
import { $, button, focusQuestion, make, visible } from "./dom.js";
import { hidePanel } from "./why.js";

const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
const newConversation = () => ({ id: newId(), changed: Date.now(), turns: [] });

/** @param changed Called when the conversation is worth keeping, or the buttons around it have to follow. */
export function createChat({ server, settings, steering, changed }) {
  let conversation = newConversation();
  const running = new Map(); // The answers that are being written, and how to stop them.
  const views = new WeakMap(); // Turns and answers, and what shows them.

  const last = () => conversation.turns.at(-1);
  function touch() {
    conversation.changed = Math.max(Date.now(), conversation.changed + 1);
    changed();
  }

  function messages(turns) {
    const said = turns.flatMap(({ question, answers, chosen }) =>
      answers[chosen].text ? [{ role: "user", content: question }, { role: "assistant", content: answers[chosen].text }] : []);
    return settings.system.trim() ? [{ role: "system", content: settings.system }, ...said] : said;
  }

  async function run(turn, answer) {
    const mine = conversation;
    const before = mine.turns.slice(0, mine.turns.indexOf(turn));
    const control = new AbortController();
    running.set(answer, control);
    changed();
    await generate(answer, [...messages(before), { role: "user", content: turn.question }], server, control.signal, views.get(answer));
    running.delete(answer);
    if (mine === conversation) touch();
    else changed();
  }

  /** Gives a turn new answers, one for each preference. */
  function answerAll(turn, alphas, chosen = 0) {
    turn.answers.forEach((answer) => running.get(answer)?.abort());
    turn.answers = alphas.map((alpha) => newAnswer(alpha, settings));
    turn.chosen = chosen;
    draw(turn);
    turn.answers.forEach((answer) => run(turn, answer));
  }
  function ask(question, alphas, chosen) {
    const turn = { question, compared: alphas.length > 1, answers: [], chosen: 0 };
    const before = last();
    conversation.turns.push(turn);
    if (before) draw(before);
    answerAll(turn, alphas, chosen);
    touch();
    views.get(turn).scrollIntoView();
  }
  function askAgain(turn, question) {
    conversation.turns.slice(conversation.turns.indexOf(turn) + 1).forEach((later) => views.get(later).remove());
    conversation.turns.length = conversation.turns.indexOf(turn) + 1;
    turn.question = question;
    const alphas = turn.answers.map(({ alpha }) => alpha);
    const again = alphas.length > 1 && alphas.every((alpha) => isOf(server.objectives, alpha));
    answerAll(turn, again ? alphas : [steering.alpha()], again ? turn.chosen : 0);
    touch();
  }

  /** The preferences of the comparison before, or the usual ones; and which of them is nearest to the slider. */
  function columns() {
    const before = conversation.turns.findLast((turn) => turn.compared && turn.answers.length > 1
      && turn.answers.every(({ alpha }) => isOf(server.objectives, alpha)));
    const alphas = before ? before.answers.map(({ alpha }) => alpha) : comparison(server.objectives);
    const distances = alphas.map((alpha) => distance(alpha, steering.alpha()));
    return { alphas, chosen: distances.indexOf(Math.min(...distances)) };
  }
  function compare(question) {
    const { alphas, chosen } = columns();
    if (question) ask(question, alphas, chosen);
    else widen(last(), alphas);
  }
  /** Puts the answers that are missing beside the one that is there. */
  function widen(turn, alphas) {
    const before = turn.answers;
    const picked = before[turn.chosen];
    const there = (alpha) => before.find((answer) => same(answer.alpha, alpha));
    const columns = alphas.map((alpha) => there(alpha) ?? newAnswer(alpha, settings));
    turn.answers = [...columns, ...before.filter((answer) => !columns.includes(answer))];
    turn.chosen = turn.answers.indexOf(picked);
    turn.compared = true;
    draw(turn);
    columns.filter((answer) => !before.includes(answer)).forEach((answer) => run(turn, answer));
    touch();
  }
  function show(answer) {
    const { element } = views.get(answer);
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "nearest" });
  }
  function add(alpha) {
    const turn = last();
    const answer = newAnswer(alpha, settings);
    turn.answers.push(answer);
    draw(turn);
    show(answer);
    run(turn, answer);
  }
  function retry(turn, answer) {
    const keep = turn.answers.length > 1 && isOf(server.objectives, answer.alpha);
    const again = newAnswer(keep ? answer.alpha : steering.alpha(), settings);
    turn.answers[turn.answers.indexOf(answer)] = again;
    draw(turn);
    show(again);
    run(turn, again);
  }
  function remove(turn, answer) {
    running.get(answer)?.abort();
    const at = turn.answers.indexOf(answer);
    turn.answers.splice(at, 1);
    if (at < turn.chosen || turn.chosen === turn.answers.length) turn.chosen -= 1;
    draw(turn);
    show(turn.answers[turn.chosen]);
    touch();
  }
  function choose(turn, answer) {
    turn.chosen = turn.answers.indexOf(answer);
    turn.answers.forEach((each) => views.get(each).show());
    focusQuestion();
    touch();
  }

  /** Only the last turn can change; what follows an earlier one was said because of it. */
  function actions(turn, answer) {
    const among = turn.answers.length;
    const chosen = among > 1 && turn.answers[turn.chosen] === answer;
    if (turn !== last()) return { among, chosen };
    return {
      among, chosen, retry: () => retry(turn, answer),
      choose: among > 1 && !chosen ? () => choose(turn, answer) : null,
      remove: among > 1 ? () => remove(turn, answer) : null,
    };
  }

  function questionView(turn) {
    const text = make("h2", { className: "asked", dir: "auto" }, visible(turn.question));
    const edit = button("Edit", () => view.replaceWith(editor(turn)), { className: "edit quiet", "aria-label": "Edit the question" });
    const view = make("div", { className: "question" }, text, edit);
    return view;
  }
  function editor(turn) {
    const area = make("textarea", { className: "editing", value: turn.question, dir: "auto", "aria-label": "The question", rows: 2 });
    const later = conversation.turns.length - 1 - conversation.turns.indexOf(turn);
    const save = () => { if (area.value.trim()) askAgain(turn, area.value.trim()); };
    const cancel = () => { view.replaceWith(questionView(turn)); };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    });
    const warning = later ? make("small", {}, `What comes after it is removed (${later} ${later > 1 ? "questions" : "question"}).`) : null;
    const view = make("div", { className: "question" }, area,
      make("div", { className: "buttons" }, warning, button("Cancel", cancel), button("Ask again", save, { className: "main" })));
    requestAnimationFrame(() => area.focus());
    return view;
  }

  function addButton() {
    const made = button("", () => add(steering.alpha()), { className: "beside" });
    labelAddButton(made);
    return made;
  }
  function labelAddButton(made) {
    made.replaceChildren("+ Add an answer at ", chip(steering.alpha()));
  }

  function draw(turn) {
    hidePanel();
    const answers = turn.answers.map((answer) => {
      if (!views.has(answer)) views.set(answer, answerView(answer, () => actions(turn, answer)));
      const view = views.get(answer);
      view.show();
      return view.element;
    });
    const steerable = server.objectives.length > 0 && turn === last();
    const context = answers.length > 1 && turn !== conversation.turns[0]
      ? make("small", { className: "context" }, "Earlier answers are part of the question; a new conversation compares without them.") : null;
    const view = make("section", { className: "turn" }, questionView(turn), context,
      make("div", { className: "answers" }, ...answers), steerable ? addButton() : null);
    view.classList.toggle("comparing", answers.length > 1);
    if (views.has(turn) && views.get(turn).isConnected) views.get(turn).replaceWith(view);
    else $("turns").append(view);
    views.set(turn, view);
  }

  function stop() {
    running.forEach((control) => control.abort());
  }
  function open(other) {
    if (running.size > 0) touch();
    stop();
    conversation = other ?? newConversation();
    $("turns").replaceChildren();
    conversation.turns.forEach(draw);
    if (last()) views.get(last()).scrollIntoView();
    changed();
  }

  return {
    ask: (question) => ask(question, [steering.alpha()]),
    compare, stop, open, touch,
    messages: () => messages(conversation.turns),
    steered: () => document.querySelectorAll(".beside").forEach(labelAddButton),
    get conversation() { return conversation; },
    get busy() { return running.size > 0; },
  };
}
