// A preference α is "base" (the base model alone) or an object of weights by objective: {cheer: 0.7, formality: 0.3}.
import { make, short } from "./dom.js";

const COLOURS = 6;

export function describe(alpha) {
  if (alpha === "base") return "base alone";
  const weights = Object.values(alpha);
  if (weights.length > 2 && Math.max(...weights) - Math.min(...weights) < 0.005) return "balanced";
  const named = Object.entries(alpha).filter(([, weight]) => weight >= 0.005);
  return named.map(([name, weight]) => `${name} ${short(weight)}`).join(" · ");
}

export const same = (one, other) => describe(one) === describe(other);

export function distance(one, other) {
  if (same(one, other)) return 0;
  if (one === "base" || other === "base") return Infinity;
  return Object.keys(one).reduce((sum, name) => sum + Math.abs(one[name] - (other[name] ?? 0)), 0);
}

export const fromWeights = (objectives, weights) =>
  Object.fromEntries(objectives.map((name, i) => [name, Number(weights[i].toFixed(4))]));

/** Whether an α is one of these objectives: conversations outlive the model that they were held with. */
export const isOf = (objectives, alpha) =>
  alpha === "base" ? objectives.length > 0
    : alpha !== null && Object.keys(alpha).length === objectives.length && objectives.every((name) => name in alpha);

/** Weights with one of them changed; the others keep their proportions, and the sum stays 1. */
export function withWeight(weights, which, weight) {
  const wanted = Math.min(1, Math.max(0, weight));
  const rest = 1 - weights[which];
  return weights.map((other, i) => {
    if (i === which) return wanted;
    return (1 - wanted) * (rest > 1e-9 ? other / rest : 1 / (weights.length - 1));
  });
}

/** The preferences that a comparison starts with. Two corners have the middle between them, as on the slider. */
export function comparison(objectives) {
  const corners = objectives.map((_, at) => fromWeights(objectives, objectives.map((_, i) => Number(i === at))));
  const balanced = fromWeights(objectives, objectives.map(() => 1 / objectives.length));
  if (objectives.length === 1) return ["base", ...corners];
  if (objectives.length === 2) return ["base", corners[1], balanced, corners[0]];
  return ["base", ...corners, balanced];
}

/** The colour of a preference: the colours of the objectives, mixed by weight. */
export function tone(alpha) {
  if (!alpha || alpha === "base") return "var(--base)";
  const weights = Object.values(alpha);
  const space = weights.length === 2 ? "oklch" : "oklab";
  let mixed = null;
  let sum = 0;
  weights.forEach((weight, i) => {
    if (weight <= 0) return;
    sum += weight;
    const colour = `var(--tone-${i % COLOURS})`;
    mixed = mixed ? `color-mix(in ${space}, ${colour} ${short((100 * weight) / sum)}%, ${mixed})` : colour;
  });
  return mixed ?? "var(--base)";
}

export function chip(alpha) {
  const dot = make("i", { className: "dot", "aria-hidden": "true" });
  const made = make("span", { className: "chip" }, dot, describe(alpha));
  made.style.setProperty("--tone", tone(alpha));
  return made;
}
