// What the browser keeps. Every conversation has a key of its own, so that a broken one costs no other.
const PREFIX = "parm-mlx.";
const CONVERSATION = "conversation.";

export function read(key) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key));
  } catch {
    return null;
  }
}

/** Whether there was room. */
export function write(key, value) {
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function storedKeys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX + CONVERSATION));
  } catch {
    return [];
  }
}

const isText = (value) => typeof value === "string";
const isAlpha = (alpha) =>
  alpha === null || alpha === "base" || (typeof alpha === "object" && Object.values(alpha).every(Number.isFinite));
const isAnswer = (answer) => isText(answer?.text) && isText(answer.thought) && isAlpha(answer.alpha);
const isTurn = (turn) =>
  isText(turn?.question) && Array.isArray(turn.answers) && turn.answers.every(isAnswer) &&
  Number.isInteger(turn.chosen) && turn.chosen in turn.answers;
const isConversation = (value) =>
  isText(value?.id) && Number.isFinite(value.changed) && Array.isArray(value.turns) && value.turns.length > 0 &&
  value.turns.every(isTurn);

/** The conversations, the latest first. An answer that was being written when the page closed counts as stopped. */
export function loadConversations() {
  const found = storedKeys().map((key) => read(key.slice(PREFIX.length))).filter(isConversation);
  for (const answer of found.flatMap(({ turns }) => turns).flatMap(({ answers }) => answers)) {
    if (answer.state === "streaming") answer.state = "stopped";
  }
  return found.sort((one, other) => other.changed - one.changed);
}

const withoutReasons = (conversation) =>
  JSON.parse(JSON.stringify(conversation, (name, value) => (name === "explain" ? undefined : value)));

/** Where the storage is full, the largest part goes first: the numbers behind the words of all conversations. */
export function saveConversation(conversation) {
  const key = CONVERSATION + conversation.id;
  if (write(key, conversation)) return true;
  for (const other of loadConversations()) write(CONVERSATION + other.id, withoutReasons(other));
  return write(key, withoutReasons(conversation));
}

export function deleteConversation({ id }) {
  localStorage.removeItem(PREFIX + CONVERSATION + id);
}

export const inTab = {
  get(key) {
    try {
      return sessionStorage.getItem(PREFIX + key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      sessionStorage.setItem(PREFIX + key, value);
    } catch {
      // The page works without.
    }
  },
};
