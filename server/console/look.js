// The tab Look: frames that were kept for a person, labelled by one key each.

import { noteAt, request } from "./api.js";
import { byId, element, show } from "./dom.js";
import { ask } from "./key.js";
import { showClasses } from "./look/classes.js";
import { t } from "./words.js";

const PAGE = 60;
const KEYS = "123456789";

let samples = [];
let chosen = new Set(); // Ids of the selected ones.
let at = 0; // The one that has the focus.
let labels = []; // Those of the model of the samples.
let done = []; // What can be undone: [[id, label before], ...] each.
let next = null;
let counts = 0; // Counted, so that an older answer does not replace a newer one.

const say = noteAt("look-text");

function query(cursor) {
  const words = new URLSearchParams({ limit: PAGE });
  for (const [name, value] of new FormData(byId("look-filter"))) if (value) words.set(name, value);
  if (cursor) words.set("cursor", cursor);
  return `v1/samples?${words}`;
}

async function thumbnail(picture, id) {
  try {
    const response = await ask(`v1/samples/${id}/image`);
    if (!response.ok) return;
    picture.src = URL.createObjectURL(await response.blob());
    await picture.decode();
  } catch {
    // Its labels are enough.
  }
  URL.revokeObjectURL(picture.src);
}

function text(sample) {
  const best = sample.best ? `${sample.best.label} ${(sample.best.probability * 100).toFixed(0)} %` : "–";
  return [sample.label ? `✓ ${sample.label}` : best, sample.reason].join(" · ");
}

function makeCard(sample, index) {
  const card = element("button", undefined, "card");
  const picture = element("img");
  picture.alt = "";
  card.type = "button";
  card.dataset.id = sample.id;
  card.append(picture, element("span", text(sample)));
  card.addEventListener("click", () => {
    at = index;
    toggle(sample.id);
  });
  card.addEventListener("focus", () => {
    at = index;
  });
  thumbnail(picture, sample.id);
  return card;
}

function refreshCards() {
  for (const card of byId("cards").children) {
    const sample = samples.find(({ id }) => id === card.dataset.id);
    card.setAttribute("aria-pressed", String(chosen.has(sample.id)));
    card.classList.toggle("labelled", sample.label !== null);
    card.querySelector("span").textContent = text(sample);
  }
  byId("selected").textContent = chosen.size ? `${chosen.size} ${t("selected")}` : "";
  byId("undo").disabled = done.length === 0;
}

function toggle(id) {
  if (chosen.has(id)) chosen.delete(id);
  else chosen.add(id);
  refreshCards();
}

async function setLabel(id, label) {
  const sample = samples.find((each) => each.id === id);
  const body = JSON.stringify({ label });
  const headers = { "Content-Type": "application/json" };
  const answer = await request(`v1/samples/${id}/label`, { method: "POST", body, headers });
  if (sample) sample.label = answer.label;
}

// Labels what is selected, else the frame that has the focus.
async function give(label) {
  const ids = chosen.size ? [...chosen] : samples[at] ? [samples[at].id] : [];
  const before = ids.map((id) => [id, samples.find((each) => each.id === id).label]);
  const one = chosen.size === 0;
  try {
    for (const id of ids) await setLabel(id, label);
    say("");
  } catch (error) {
    say(error.message);
  }
  if (before.length) done.push(before);
  chosen.clear();
  refreshCards();
  count();
  if (one && at + 1 < samples.length) byId("cards").children[at + 1].focus();
}

async function undo() {
  const before = done.pop();
  if (!before) return;
  try {
    for (const [id, label] of before) await setLabel(id, label);
    say("");
  } catch (error) {
    say(error.message);
  }
  refreshCards();
  count();
}

async function showLabels() {
  const names = [...new Set(samples.map(({ model }) => model))];
  const found = await Promise.all(
    names.map((name) => request(`v1/models/${encodeURIComponent(name)}`).catch(() => null)),
  );
  labels = [...new Set(found.flatMap((model) => model?.labels ?? []))];
  byId("label-keys").replaceChildren(
    ...labels.map((label, index) => {
      const button = element("button", label.replaceAll("_", " "));
      button.type = "button";
      if (KEYS[index]) button.prepend(element("kbd", KEYS[index]));
      button.addEventListener("click", () => give(label));
      return button;
    }),
  );
}

async function load(more = false) {
  let page;
  try {
    page = await request(query(more ? next : null));
  } catch (error) {
    say(error.message);
    return;
  }
  say(
    !page.keeping
      ? t('No samples are kept on this server: set samples = "on", and start it again.')
      : page.samples.length || more
        ? ""
        : t("No frame waits here. Frames that the model was unsure about will."),
  );
  if (!more) [samples, chosen, done, at] = [[], new Set(), [], 0];
  const first = samples.length;
  samples.push(...page.samples);
  next = page.next;
  // First the keys, so that a card that is there can be labelled.
  await showLabels();
  const cards = page.samples.map((sample, index) => makeCard(sample, first + index));
  if (more) byId("cards").append(...cards);
  else byId("cards").replaceChildren(...cards);
  show("look-more", next !== null);
  counts += 1;
  showCounts(page);
  refreshCards();
}

function showCounts({ kept, labelled, labels: byLabel }) {
  byId("look-count").textContent = `${kept} ${t("kept")}, ${labelled} ${t("labelled")}`;
  showClasses(byLabel);
}

// After labels were given, their counts are others.
async function count() {
  const mine = ++counts;
  try {
    const page = await request("v1/samples?limit=1");
    if (mine === counts) showCounts(page);
  } catch (error) {
    say(error.message);
  }
}

function selectAll() {
  const all = samples.map(({ id }) => id);
  chosen = new Set(chosen.size === all.length ? [] : all);
  refreshCards();
}

function columns() {
  return getComputedStyle(byId("cards")).gridTemplateColumns.split(" ").length;
}

function press(event) {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey) return;
  if (byId("tab-look").hidden) return;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
  if (event.key in moves) {
    const to = Math.max(0, Math.min(samples.length - 1, at + moves[event.key]));
    byId("cards").children[to]?.focus();
  } else if (KEYS.includes(event.key) && labels[KEYS.indexOf(event.key)]) {
    give(labels[KEYS.indexOf(event.key)]);
  } else if (event.key === "u") {
    undo();
  } else {
    return;
  }
  event.preventDefault();
}

export function start() {
  document.addEventListener("keydown", press);
  byId("look-filter").addEventListener("change", () => load());
  byId("look-filter").addEventListener("submit", (event) => event.preventDefault());
  byId("look-refresh").addEventListener("click", () => load());
  byId("look-more").addEventListener("click", () => load(true));
  byId("undo").addEventListener("click", undo);
  byId("select-all").addEventListener("click", selectAll);
  byId("unlabel").addEventListener("click", () => give(null));
}

export function enter() {
  load();
}
