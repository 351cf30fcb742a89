// The keys in the tab Set up: listed, made and shown once, revoked.

import { byId, element, sentence, show, sure } from "./dom.js";
import { ask, signInWithFirst } from "./key.js";
import { t } from "./words.js";

let open = false; // No key is asked for yet.
let wanted = () => false; // The tab is open.

function say(text) {
  byId("keys-text").textContent = text ? sentence(text) : "";
  show("keys-text", Boolean(text));
}

async function request(url, options, isWanted = wanted) {
  const response = await ask(url, options, isWanted);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? String(response.status));
  return answer;
}

const moment = (at) => new Date(at).toLocaleString([], { dateStyle: "short", timeStyle: "short" });

async function revoke({ name, own }) {
  const words = [`${t("Revoke the key")} ${name}?`, t("Whoever uses it is refused from now on.")];
  if (own) words.push(t("It is your own: you are signed out."));
  if (!(await sure(words.join(" ")))) return;
  try {
    say("");
    showKeys(await request(`v1/keys/${encodeURIComponent(name)}`, { method: "DELETE" }));
  } catch (error) {
    say(error.message);
  }
}

function rowOf(key, changeable) {
  const row = element("tr");
  const rights = key.rights.map((right) => t(right)).join(", ");
  const end = key.expires ? moment(key.expires) : "–";
  const cells = [
    key.own ? `${key.name} (${t("you")})` : key.name,
    rights,
    key.last_used ? moment(key.last_used) : t("not since the start"),
    key.expired ? `${end} (${t("expired")})` : end,
  ];
  row.append(...cells.map((text) => element("td", text)));
  const button = element("button", t("Revoke"));
  button.type = "button";
  button.setAttribute("aria-label", `${t("Revoke")} ${key.name}`);
  button.addEventListener("click", () => revoke(key));
  const last = element("td");
  if (changeable) last.append(button);
  row.append(last);
  return row;
}

function showKeys({ keys, keys_asked: asked, changeable }) {
  open = !asked;
  byId("keys").replaceChildren(...keys.map((key) => rowOf(key, changeable)));
  show("keys-table", keys.length > 0);
  show("keys-none", keys.length === 0 && changeable);
  show("keys-off", !changeable);
  show("key-new", changeable);
  // The first key is its maker's own.
  for (const box of byId("key-new").elements.rights) box.defaultChecked = open || box.value === "recognize";
}

function bringToView() {
  byId("key-made").scrollIntoView({ block: "center" });
  byId("key-value").focus({ preventScroll: true });
  byId("key-value").select();
}

function showMade({ name, key }) {
  byId("key-made-name").textContent = name;
  byId("key-value").value = key;
  show("key-made", true);
  bringToView();
}

async function make(form) {
  const rights = [...form.elements.rights].filter((box) => box.checked).map((box) => box.value);
  if (rights.length === 0) {
    say(t("A key needs a right."));
    return;
  }
  const warning = t("This is the first key. From now on everybody needs one, cameras too.");
  const isFirst = open;
  if (isFirst && !(await sure(warning))) return;
  const { value: day } = form.elements.expires;
  const body = { name: form.elements.name.value.trim(), rights };
  if (day) body.expires = new Date(`${day}T00:00:00`).toISOString();
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(body) };
  const send = async () => {
    const made = await request("v1/keys", options, isFirst ? () => false : wanted);
    showMade(made);
    return made;
  };
  try {
    say("");
    await (isFirst ? signInWithFirst(send) : send());
    form.reset();
  } catch (error) {
    say(error.message);
    return;
  }
  await enter(wanted);
  // The list above it has grown.
  if (!byId("key-made").hidden) bringToView();
}

function hideMade() {
  byId("key-value").value = "";
  show("key-made", false);
}

async function copy() {
  byId("key-value").select();
  // Pages by plain HTTP of another machine have no clipboard; there the text is selected.
  await navigator.clipboard?.writeText(byId("key-value").value).catch(() => {});
}

export function start() {
  byId("key-new").addEventListener("submit", (event) => {
    event.preventDefault();
    make(event.target);
  });
  byId("key-copy").addEventListener("click", copy);
  byId("key-done").addEventListener("click", hideMade);
}

// isWanted: returns whether the tab is still open.
export async function enter(isWanted) {
  wanted = isWanted;
  try {
    showKeys(await request("v1/keys"));
  } catch (error) {
    say(error.message);
  }
}

export function leave() {
  hideMade();
}
