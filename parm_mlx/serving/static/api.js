// The server: its models, and answers as a stream of events.
import { askForKey } from "./dialogs.js";
import { inTab } from "./store.js";

const TRIES_WHEN_BUSY = 3;
let key = inTab.get("key");

async function send(path, options = {}) {
  const used = key;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error("The server cannot be reached.");
  }
  if (response.status !== 401) return response;
  if (used === key) {
    const given = await askForKey();
    if (given === null) throw new Error("The server asks for an API key.");
    key = given;
    inTab.set("key", key);
  }
  return send(path, options);
}

async function complaint(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

export async function getSteering() {
  const response = await send("v1/models");
  if (!response.ok) throw new Error(await complaint(response));
  return (await response.json()).steering;
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function* events(response, signal) {
  try {
    for await (const line of lines(response.body)) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  } catch (error) {
    if (signal.aborted) throw error;
  }
  throw new Error("The connection was lost before the answer was complete.");
}

/** The chunks of an answer. `busy(seconds)` is called before it waits for a busy server. */
export async function* complete(request, signal, busy) {
  const options = { method: "POST", body: JSON.stringify(request), signal };
  let response = await send("v1/chat/completions", options);
  for (let tries = 0; response.status === 429 && tries < TRIES_WHEN_BUSY; tries++) {
    const seconds = Math.min(60, Math.max(1, Number(response.headers.get("Retry-After")) || 1));
    busy(seconds);
    await pause(seconds, signal);
    response = await send("v1/chat/completions", options);
  }
  if (response.status === 429) throw new Error("The server is busy. Please try again later.");
  if (!response.ok) throw new Error(await complaint(response));
  for await (const event of events(response, signal)) {
    if (event.error) throw new Error(event.error.message);
    yield event;
  }
}
