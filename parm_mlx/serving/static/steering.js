// The controls of α: one slider between two objectives, a triangle for three, a slider each for more.
import { describe, fromWeights, tone, withWeight } from "./alpha.js";
import { $, make, short } from "./dom.js";
import { triangle } from "./triangle.js";

function numberBox(label, onvalue) {
  const box = make("input", { type: "number", min: 0, max: 1, step: "any", "aria-label": label });
  box.addEventListener("input", () => { if (box.value !== "" && box.checkValidity()) onvalue(box.valueAsNumber); });
  return box;
}

const show = (box, weight) => {
  if (document.activeElement !== box || box.type === "range") box.value = short(weight);
};

function pair([right, left], weights, choose) {
  const label = `Preference from ${left} to ${right}`;
  const range = make("input", { id: "alpha", type: "range", min: 0, max: 1, step: 0.05, "aria-label": label });
  const box = numberBox(`Weight of ${right}`, (weight) => choose(withWeight(weights(), 0, weight)));
  box.id = "alpha-number";
  range.addEventListener("input", () => choose(withWeight(weights(), 0, range.valueAsNumber)));
  const end = (name, at) => {
    const shown = make("span", { className: "end" }, name);
    shown.style.setProperty("--tone", `var(--tone-${at})`);
    return shown;
  };
  const element = make("div", { className: "pair" }, end(left, 1), range, end(right, 0), box);
  return {
    element,
    show(now) {
      show(range, now[0]);
      show(box, now[0]);
      range.setAttribute("aria-valuetext", `${right} ${short(now[0])}, ${left} ${short(now[1])}`);
    },
  };
}

function boxes(objectives, weights, choose) {
  const made = objectives.map((name, i) => numberBox(name, (weight) => choose(withWeight(weights(), i, weight))));
  const rows = made.map((box, i) => {
    const row = make("label", { className: "weight" }, make("i", { className: "dot" }), make("span", {}, objectives[i]), box);
    row.style.setProperty("--tone", `var(--tone-${i % 6})`);
    return row;
  });
  return { rows, show: (now) => made.forEach((box, i) => show(box, now[i])) };
}

function three(objectives, weights, choose) {
  const picture = triangle(objectives, weights, choose);
  const numbers = boxes(objectives, weights, choose);
  return {
    element: make("div", { className: "three" }, picture.element, make("div", { className: "numbers" }, ...numbers.rows)),
    show(now) { picture.show(now); numbers.show(now); },
  };
}

function many(objectives, weights, choose) {
  const numbers = boxes(objectives, weights, choose);
  const ranges = objectives.map((name, i) => {
    const range = make("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": name });
    range.addEventListener("input", () => choose(withWeight(weights(), i, range.valueAsNumber)));
    numbers.rows[i].lastChild.before(range);
    return range;
  });
  return {
    element: make("div", { className: "many" }, ...numbers.rows),
    show(now) { numbers.show(now); ranges.forEach((range, i) => show(range, now[i])); },
  };
}

const one = ([name]) => ({ element: make("span", { className: "end" }, name), show() {} });

/** Builds the controls; `alpha` is what they say now. */
export function createSteering(objectives, start, changed) {
  const k = objectives.length;
  const found = objectives.map((name) => Math.max(0, Number(start?.weights?.[name]) || 0));
  const sum = found.reduce((total, weight) => total + weight, 0);
  let weights = found.map((weight) => (sum > 0 ? weight / sum : 1 / k));
  const base = $("base-alone");
  base.checked = Boolean(start?.base);

  const alpha = () => (k === 0 ? null : base.checked ? "base" : fromWeights(objectives, weights));
  const build = [null, one, pair, three][k] ?? many;
  const controls = k > 0 ? build(objectives, () => weights, choose) : null;

  function choose(wanted) {
    weights = wanted;
    base.checked = false;
    update();
  }
  function update() {
    controls.show(weights);
    $("steering").classList.toggle("off", base.checked);
    $("composer").style.setProperty("--tone", tone(alpha()));
    $("weights").title = describe(alpha());
    changed();
  }

  if (controls) {
    $("steering").hidden = false;
    $("weights").replaceChildren(controls.element);
    $("weights").addEventListener("focusout", () => controls.show(weights));
    base.addEventListener("change", update);
  }
  return {
    alpha,
    update: () => { if (controls) update(); },
    stored: () => ({ base: base.checked, weights: fromWeights(objectives, weights) }),
  };
}
