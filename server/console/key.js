// The key of a server that asks for one: sent with what is asked, and kept for this tab alone.

import { byId, sentence, show } from "./dom.js";

const NAME = "lineside-key";

// A browser that may store nothing for this site throws at each touch of its storage; there a key
// lasts as long as the page.
function inSession(act) {
  try {
    return act(sessionStorage);
  } catch {
    return null;
  }
}

let key = inSession((session) => session.getItem(NAME)) ?? "";
let waiting = []; // How each refused request goes on.

function keep(newKey) {
  key = newKey;
  inSession((session) => (key ? session.setItem(NAME, key) : session.removeItem(NAME)));
  show("forget", key !== "");
  if (key) show("curl-key", true);
}

function showWhy(why) {
  byId("key-why").textContent = why;
  show("key-why", why !== "");
}

function showForm() {
  const form = byId("key-form");
  show("curl-key", true);
  if (form.hidden) form.dispatchEvent(new Event("asked"));
  form.hidden = false;
  byId("key").focus();
}

function hideForm() {
  const form = byId("key-form");
  // What is hidden loses the keyboard, which would start again at the top of the page.
  const next = form.contains(document.activeElement) ? byId("file") : null;
  form.hidden = true;
  next?.focus();
}

// The server's sentence; none where no key was sent, since it would tell a person of headers.
async function reason(response, sentKey) {
  if (!sentKey && response.status === 401) return "";
  const { error } = await response.json().catch(() => ({}));
  return sentence(error?.message ?? "the server refuses this key");
}

// Fetches `url` with the key. Where the server refuses, the person is asked for another key, and
// the request is repeated with that, if it is still wanted; if not, the refusal is the answer.
export async function ask(url, options = {}, wanted = () => true) {
  for (;;) {
    const sentKey = key;
    const headers = sentKey ? { Authorization: `Bearer ${sentKey}` } : {};
    const response = await fetch(url, { ...options, headers });
    if (response.status !== 401 && response.status !== 403) {
      if (waiting.length === 0) hideForm();
      return response;
    }
    const why = await reason(response, sentKey);
    if (!wanted()) return response;
    // With a key entered while the answer was on its way, the refusal is of no interest.
    if (key && key !== sentKey) continue;
    if (response.status === 401) keep("");
    if (why) showWhy(why);
    showForm();
    await new Promise((resolve) => waiting.push(resolve));
    if (!wanted()) return response;
  }
}

export function listenForKeys() {
  keep(key);
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keep(byId("key").value.trim());
    byId("key").value = "";
    showWhy("");
    const repeat = waiting;
    waiting = [];
    for (const goOn of repeat) goOn();
  });
  byId("forget").addEventListener("click", () => {
    keep("");
    location.reload(); // What was shown to the key goes with it.
  });
}
