// What a request says beside α: the strength of the guide, sampling, the system prompt.
import { $, short } from "./dom.js";

const within = (value, least, most) => Number.isFinite(value) && value >= least && value <= most;

const VALID = {
  beta: (value) => within(value, 0.1, 10),
  temperature: (value) => within(value, 0, 2),
  maxTokens: (value) => Number.isInteger(value) && value >= 1,
  seed: (value) => value === null || (Number.isSafeInteger(value) && value >= 0),
  system: (value) => typeof value === "string",
  think: (value) => value === null || typeof value === "boolean",
};

function valid(stored) {
  return Object.fromEntries(Object.entries(stored ?? {}).filter(([name, value]) => VALID[name]?.(value)));
}

/** Binds the fields of the page; `values` is what they say now. */
export function createSettings(server, stored, changed) {
  const steerable = server.beta !== null && server.objectives.length > 0;
  const defaults = {
    beta: steerable ? server.beta : null, temperature: server.temperature, maxTokens: server.max_tokens, seed: null, system: "",
    think: null,
  };
  const values = { ...defaults, ...valid(stored), ...(steerable ? {} : { beta: null }) };

  function summary() {
    const parts = [`temperature ${short(values.temperature)}`, `${values.maxTokens} tokens`];
    if (values.beta !== null) parts.unshift(`β ${short(values.beta)}`);
    if (values.seed !== null) parts.push(`seed ${values.seed}`);
    if (values.system.trim()) parts.push("system prompt");
    return parts.join(" · ");
  }
  function show() {
    $("beta").value = values.beta === null ? 0 : -Math.log10(values.beta);
    $("beta").setAttribute("aria-valuetext", `β ${values.beta}`);
    $("temperature").value = values.temperature;
    const fields = { "beta-number": "beta", "temperature-number": "temperature", "max-tokens": "maxTokens", seed: "seed", system: "system" };
    for (const [id, name] of Object.entries(fields)) {
      if (document.activeElement !== $(id)) $(id).value = values[name] ?? "";
    }
    $("think").checked = values.think ?? server.enable_thinking ?? true;
    $("settings-now").textContent = summary();
  }
  function set(name, value) {
    if (!VALID[name](value)) return;
    values[name] = value;
    show();
    changed();
  }
  const bind = (id, name, parse) => $(id).addEventListener("input", () => set(name, parse($(id))));
  const number = (input) => (input.value === "" ? NaN : input.valueAsNumber);
  bind("beta", "beta", (input) => Number((10 ** -input.valueAsNumber).toPrecision(3)));
  bind("beta-number", "beta", number);
  bind("temperature", "temperature", number);
  bind("temperature-number", "temperature", number);
  bind("max-tokens", "maxTokens", number);
  bind("seed", "seed", (input) => (input.value === "" ? null : input.valueAsNumber));
  bind("system", "system", (input) => input.value);
  bind("think", "think", (input) => input.checked);
  $("settings").addEventListener("focusout", () => show());
  $("defaults").addEventListener("click", () => {
    Object.assign(values, defaults);
    show();
    changed();
  });
  $("beta-field").hidden = !steerable;
  $("think-field").hidden = !server.thinks;
  show();
  return values;
}
