// The console at /: its tabs, the server's health, the language. Each tab's script is loaded when
// the tab is first opened.

import { byId, show } from "./dom.js";
import { ask, listenForKeys } from "./key.js";
import * as tryTab from "./try.js";
import { language, setLanguage, t, translate } from "./words.js";

const TABS = ["now", "try", "look", "journal", "models", "setup"];
const READY_EVERY_MS = 5000;
const wall = new URLSearchParams(location.search).has("wall");
const opened = {}; // The scripts of tabs, by name, once they listen.
const loading = {}; // Promises of them.

let first = null; // The tab of an address without any, once it is known.
let chosen = null; // The tab that was asked for last.
let shown = null; // The tab that is there.
let lacking = false; // A script could not be loaded.

function wantedTab() {
  const name = location.hash.slice(1);
  return TABS.includes(name) ? name : null;
}

function load(name) {
  loading[name] ??= import(`./${name}.js`).then((script) => {
    script.start?.();
    opened[name] = script;
  });
  return loading[name];
}

// A tab is shown once its script listens: a click before that would be lost. Until then the tab
// before goes on.
async function open(name) {
  if (name === chosen) return;
  chosen = name;
  for (const tab of TABS) {
    const link = document.querySelector(`nav a[href="#${tab}"]`);
    if (tab === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    if (name !== "try") await load(name);
  } catch (error) {
    lacking = true;
    console.warn(`The tab ${name} can't be loaded:`, error);
    return;
  }
  // Another tab was asked for meanwhile, or this one more than once.
  if (name !== chosen || name === shown) return;
  opened[shown]?.leave?.();
  shown = name;
  for (const tab of TABS) show(`tab-${tab}`, tab === name);
  show("curl", name === "try");
  opened[name]?.enter?.();
}

// A line with cameras opens with what it does now, and a server without any with a frame to try.
async function firstTab() {
  if (wall) return "now";
  // Not wanted once it is refused: without a key there is no form for this.
  const response = await ask("v1/cameras", {}, () => false).catch(() => null);
  if (!response?.ok) return "try";
  const { cameras } = await response.json();
  return cameras.length > 0 ? "now" : "try";
}

async function watchHealth() {
  const health = byId("health");
  let ready = false;
  try {
    const response = await fetch("readyz");
    // A browser keeps the failure of a script as long as the page.
    if (lacking) location.reload();
    ready = response.ok;
    health.dataset.state = ready ? "ready" : "wait";
    health.textContent = ready ? t("ready") : (await response.json()).error.message;
  } catch {
    health.dataset.state = "down";
    health.textContent = t("the server can't be reached");
  }
  tryTab.serverIsReady(ready);
  setTimeout(watchHealth, READY_EVERY_MS);
}

function listenForLanguage() {
  const choice = byId("language");
  choice.value = language();
  choice.addEventListener("change", () => {
    setLanguage(choice.value);
    location.reload();
  });
}

translate(document);
listenForKeys();
listenForLanguage();
tryTab.start();
document.body.classList.toggle("wall", wall);
window.addEventListener("hashchange", () => {
  const tab = wantedTab() ?? (location.hash ? null : first);
  if (tab) open(tab);
});
byId("key-form").addEventListener("signed-in", async () => {
  first = await firstTab();
  if (!wantedTab() && !tryTab.isUsed()) open(first);
});
watchHealth();
if (wantedTab()) open(wantedTab());
first = await firstTab();
// A person may have opened a tab meanwhile.
if (chosen === null) open(first);
