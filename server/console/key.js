// Signing in at a server that asks for keys. The key is sent once; the server's cookie takes its
// place, which no script can read. Nothing of it is kept here.

import { byId, sentence, show } from "./dom.js";
import { t } from "./words.js";

const URL = "v1/session";

let signIns = 0; // Counted, so that a refusal of an older one is of no interest.
let name = ""; // Of the key that is signed in.
let waiting = []; // How each refused request goes on.
let entering = null; // While the first key is made: a promise, which refused requests wait for.

async function errorOf(response) {
  const { error } = await response.json().catch(() => ({}));
  return sentence(error?.message ?? t("the server refuses this key"), name);
}

function showWho(state) {
  name = state.name;
  byId("who").textContent = name;
  show("who", name !== "");
  show("sign-out", name !== "");
  if (state.keys_asked) show("curl-key", true);
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

// Fetches `url` with the session's cookie. Where the server refuses, the person is asked for a key,
// and the request is repeated with that, if it is still wanted; if not, the refusal is the answer.
export async function ask(url, options = {}, wanted = () => true) {
  for (;;) {
    const [sent, signedIn] = [signIns, name];
    const response = await fetch(url, options);
    if (response.status !== 401 && response.status !== 403) {
      if (waiting.length === 0) hideForm();
      return response;
    }
    if (!wanted()) return response;
    await entering;
    // Signed in while the answer was on its way.
    if (signIns !== sent) continue;
    // Without a session the server's sentence would tell a person of headers.
    if (signedIn || response.status === 403) showWhy(await errorOf(response.clone()));
    if (response.status === 401) showWho({ name: "" });
    showForm();
    await new Promise((resolve) => waiting.push(resolve));
    if (!wanted()) return response;
  }
}

async function signIn() {
  const field = byId("key");
  const key = field.value.trim();
  field.value = "";
  await signInWith(key);
}

async function signInWith(key) {
  showWhy("");
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(URL, { method: "POST", headers, body: JSON.stringify({ key }) });
    if (!response.ok) {
      showWhy(await errorOf(response));
      return;
    }
    showWho(await response.json());
  } catch {
    showWhy(sentence(t("the server can't be reached")));
    return;
  }
  signIns += 1;
  const repeat = waiting;
  waiting = [];
  for (const goOn of repeat) goOn();
  byId("key-form").dispatchEvent(new Event("signed-in"));
}

// Signs in with the first key of the server, which `make` makes: from then on the server asks for
// one, and who made it should not be asked. Returns what `make` does. `make` asks nothing that waits
// for a key.
export async function signInWithFirst(make) {
  const done = make().then(async (made) => {
    await signInWith(made.key);
    return made;
  });
  entering = done.catch(() => {});
  try {
    return await done;
  } finally {
    entering = null;
  }
}

async function signOut() {
  await fetch(URL, { method: "DELETE" }).catch(() => {});
  location.reload(); // What was shown to the key goes with it.
}

export function listenForKeys() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    signIn();
  });
  byId("sign-out").addEventListener("click", signOut);
  const began = signIns;
  fetch(URL)
    .then((response) => response.json())
    .then((state) => signIns === began && showWho(state))
    .catch(() => {}); // The health line says that the server can't be reached.
}
