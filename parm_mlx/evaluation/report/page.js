"use strict";
// The browser of answers. answers[prompt][seed][0] is the base alone, [1 + i] the answer at alphas[i]; an answer is
// [text, tokens, ended, scores]. Texts reach the page through textContent alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const { objectives, rewards, alphas, prompts, seeds, answers, means } = data;
  const k = objectives.length;
  const state = { prompt: 0, seed: 0, point: data.first };
  let matching = prompts.map((_, index) => index);

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const shown = Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
    return shown.replace("-", "−");
  };
  // α in words; of many objectives, those that weigh anything.
  const named = (alpha) => objectives.map((name, i) => [name, alpha[i]]).filter(([, weight]) => k <= 3 || weight > 0)
    .map(([name, weight]) => `${name} ${number(weight)}`).join(", ");
  const plain = (prompt) =>
    typeof prompt.content === "string" ? prompt.content : prompt.content.map((message) => message.content).join("\n");
  const answerAt = (point) => answers[state.prompt][state.seed][point + 1];

  // The order in which a person walks along α: by the first weight, then the second, …
  const order = alphas.map((_, index) => index);
  order.sort((a, b) => {
    const i = alphas[a].findIndex((weight, at) => weight !== alphas[b][at]);
    return i < 0 ? 0 : alphas[a][i] - alphas[b][i];
  });

  // Two objectives have one slider. More have one each: it moves through the weights that occur, and the others keep
  // their proportions as nearly as the grid allows.
  const sliders = [];
  function nearest(which, weight) {
    const now = alphas[state.point];
    const rest = 1 - now[which];
    const target = now.map((other, i) =>
      i === which ? weight : rest > 1e-9 ? (other / rest) * (1 - weight) : (1 - weight) / Math.max(1, k - 1));
    let best = state.point;
    let least = Infinity;
    alphas.forEach((alpha, index) => {
      if (Math.abs(alpha[which] - weight) > 1e-9) return;
      const distance = alpha.reduce((sum, other, i) => sum + (other - target[i]) ** 2, 0);
      if (distance < least - 1e-12) [best, least] = [index, distance];
    });
    return best;
  }
  function makeSliders() {
    const shown = k === 2 ? [0] : k === 1 ? [] : objectives.map((_, i) => i);
    for (const which of shown) {
      const weights = [...new Set(alphas.map((alpha) => alpha[which]))].sort((a, b) => a - b);
      const row = element("div", undefined, "slider");
      const input = element("input");
      Object.assign(input, { type: "range", id: `slider-${which}`, min: 0, max: weights.length - 1, step: 1 });
      input.disabled = weights.length < 2;
      const label = element("label", k === 2 ? objectives[1] : objectives[which]);
      label.htmlFor = input.id;
      const end = k === 2 ? element("span", objectives[0]) : element("output");
      if (k === 2) input.setAttribute("aria-label", `Preference from ${objectives[1]} to ${objectives[0]}`);
      input.addEventListener("input", () => choose(nearest(which, weights[Number(input.value)])));
      row.append(label, input, end);
      $("sliders").append(row);
      sliders.push({ which, weights, input, end });
    }
  }
  function showSliders() {
    const alpha = alphas[state.point];
    for (const { which, weights, input, end } of sliders) {
      input.value = String(weights.indexOf(alpha[which]));
      input.setAttribute("aria-valuetext", named(alpha));
      if (k > 2) end.textContent = number(alpha[which]);
    }
    $("chosen").textContent = `α: ${named(alpha)}`;
  }

  function showAnswer(id, answer, beside, mean) {
    const place = $(id);
    place.className = answer && answer[0] ? "answer" : "answer none";
    place.textContent = !answer ? "There is no answer." : answer[0] || "The answer is empty.";
    const table = element("table");
    if (answer) {
      const head = table.createTHead().insertRow();
      for (const title of ["", "score", ...(beside ? ["against the base alone"] : []), "mean of all prompts"]) {
        const cell = element("th", title);
        cell.scope = "col";
        head.append(cell);
      }
      const body = table.createTBody();
      rewards.forEach((name, i) => {
        const row = body.insertRow();
        const title = element("th", name);
        title.scope = "row";
        row.append(title, element("td", number(answer[3][i])));
        if (beside) {
          const change = answer[3][i] - beside[3][i];
          const sign = change > 0 ? "+" : "";
          row.append(element("td", sign + number(change), change > 0 ? "up" : change < 0 ? "down" : ""));
        }
        row.append(element("td", number(mean[i])));
      });
    }
    const note = answer ? `${answer[1]} tokens${answer[2] ? "" : ", cut off at the limit"}` : "";
    $(`${id}-scores`).replaceChildren(table, element("small", note));
  }

  const cards = order.map((point) => {
    const card = element("button");
    card.type = "button";
    card.dataset.card = point;
    card.addEventListener("click", () => choose(point));
    return card;
  });
  function fillStrip() {
    cards.forEach((card, at) => {
      const point = order[at];
      const answer = answerAt(point);
      const weights = element("span", undefined, "weights");
      weights.setAttribute("aria-hidden", "true");
      for (const weight of alphas[point]) {
        const column = element("i");
        column.style.height = `${Math.round(weight * 100)}%`;
        weights.append(column);
      }
      const few = rewards.map((_, i) => i).filter((i) => rewards.length <= 4 || alphas[point][i] > 0);
      const scores = answer ? few.map((i) => `${rewards[i]} ${number(answer[3][i])}`).join(", ") : "";
      card.replaceChildren(
        element("span", k <= 3 ? alphas[point].map(number).join(", ") : named(alphas[point]), "alpha"), weights,
        element("span", answer ? answer[0] || "(empty)" : "(no answer)", "text"), element("span", scores, "scores"));
      card.setAttribute("aria-label", `${named(alphas[point])}: ${answer ? answer[0].slice(0, 200) : "no answer"}`);
    });
  }
  function markStrip() {
    cards.forEach((card, at) => card.setAttribute("aria-pressed", String(order[at] === state.point)));
    const card = cards[order.indexOf(state.point)];
    const strip = $("strip");
    strip.scrollLeft = card.offsetLeft - (strip.clientWidth - card.offsetWidth) / 2;
  }

  function markPicture() {
    document.querySelectorAll(".picture .here").forEach((ring) => ring.remove());
    document.querySelectorAll(".picture .current").forEach((group) => group.classList.remove("current"));
    document.querySelectorAll(`.picture [data-point="${state.point}"]`).forEach((group) => {
      const uses = group.querySelectorAll("use");
      if (!uses.length) group.classList.add("current");
      uses.forEach((use) => {
        const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
        for (const [name, value] of [["cx", use.getAttribute("x")], ["cy", use.getAttribute("y")], ["r", "8.5"]]) {
          ring.setAttribute(name, value);
        }
        ring.setAttribute("class", "here");
        group.append(ring);
      });
    });
  }
  function linkPicture() {
    document.querySelectorAll('.picture [id^="point-"]').forEach((group) => {
      group.dataset.point = group.id.split("-")[1];
      group.addEventListener("click", () => choose(Number(group.dataset.point)));
    });
  }
  const rows = [...document.querySelectorAll(".points tr[data-point]")];
  for (const row of rows) {
    row.querySelector("button").addEventListener("click", () => {
      choose(Number(row.dataset.point));
      $("browser").scrollIntoView();
    });
  }

  function choose(point) {
    state.point = point;
    showSliders();
    showAnswer("guided", answerAt(point), answerAt(-1), means[point + 1]);
    markStrip();
    markPicture();
    for (const row of rows) {
      if (Number(row.dataset.point) === point) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  function showPrompt() {
    const { content } = prompts[state.prompt];
    const messages = typeof content === "string" ? [{ content }] : content;
    $("asked").replaceChildren(...messages.map((message) => {
      const shown = element("p");
      if (message.role) shown.append(element("span", message.role, "role"));
      shown.append(message.content);
      return shown;
    }));
    const at = matching.indexOf(state.prompt);
    $("position").textContent = matching.length ? `${at + 1} of ${matching.length}` : "nothing found";
    $("previous").disabled = at <= 0;
    $("next").disabled = at < 0 || at >= matching.length - 1;
    $("prompt").value = String(state.prompt);
    showAnswer("alone", answerAt(-1), null, means[0]);
    fillStrip();
    choose(state.point);
  }
  function listPrompts() {
    $("prompt").replaceChildren(...matching.map((index) => {
      const text = plain(prompts[index]).replace(/\s+/g, " ").trim();
      const option = element("option", text.length > 90 ? `${text.slice(0, 89)}…` : text || prompts[index].id);
      option.value = String(index);
      return option;
    }));
    $("prompt").disabled = !matching.length;
  }
  function search() {
    const wanted = $("search").value.trim().toLowerCase();
    const holds = (text) => text.toLowerCase().includes(wanted);
    matching = [...prompts.keys()].filter((index) =>
      !wanted || holds(prompts[index].id) || holds(plain(prompts[index])) ||
      answers[index].some((row) => row.some((answer) => answer && holds(answer[0]))));
    if (matching.length && !matching.includes(state.prompt)) state.prompt = matching[0];
    listPrompts();
    showPrompt();
  }
  const step = (by) => {
    state.prompt = matching[matching.indexOf(state.prompt) + by];
    showPrompt();
  };

  $("prompt").addEventListener("change", () => { state.prompt = Number($("prompt").value); showPrompt(); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  let waiting;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  $("seed").replaceChildren(...seeds.map((seed, index) => {
    const option = element("option", String(seed));
    option.value = String(index);
    return option;
  }));
  $("seed").hidden = $("seed-label").hidden = seeds.length < 2;
  $("seed").addEventListener("change", () => { state.seed = Number($("seed").value); showPrompt(); });
  $("strip").append(...cards);
  makeSliders();
  linkPicture();
  listPrompts();
  showPrompt();
})();
