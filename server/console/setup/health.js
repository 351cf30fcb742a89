// Set up: the health of each camera's picture; what is measured, and the limits that are in force.
// The limits are settings: the page tries others on the live values, and says what to write.

import { name as part, remove, request, tell } from "../api.js";
import { button, byId, element, show, sure } from "../dom.js";
import { t } from "../words.js";

// Key of [[image_health_limits]], its words, what is measured, whether it is a least value, range and step.
const LIMITS = [
  ["brightness_min", "least brightness", (last) => last.brightness, true, 255, 1],
  ["brightness_max", "highest brightness", (last) => last.brightness, false, 255, 1],
  ["contrast_min", "least contrast", (last) => last.contrast, true, 128, 0.5],
  ["sharpness_min", "least sharpness", (last) => last.sharpness, true, 1, 0.01],
  ["shift_max", "largest shift", (last, size) => (last.shift && size ? Math.hypot(...last.shift) / Math.max(...size) : null), false, 0.5, 0.001],
];

const cards = new Map(); // By camera and model.
let say = () => {};

const shown = (value, step) => (value === null ? "–" : value.toFixed(step < 0.01 ? 4 : step < 1 ? 2 : 0));

function makeLimit(card, [key, words, , , most, step]) {
  const row = element("tr");
  const input = element("input");
  Object.assign(input, { type: "range", min: 0, max: most, step });
  input.setAttribute("aria-label", `${card.name}: ${t(words)}`);
  const cells = { now: element("td"), bound: element("td"), verdict: element("td") };
  const slot = element("td");
  slot.append(input);
  row.append(element("td", t(words)), cells.now, cells.bound, slot, cells.verdict);
  input.addEventListener("input", () => {
    card.tried.set(key, Number(input.value));
    refreshCard(card);
  });
  return { row, input, ...cells };
}

function makeCard(state) {
  const card = { name: state.camera, tried: new Map(), state, limits: new Map() };
  card.box = element("article", undefined, "health-card");
  card.title = element("h3", `${state.camera} · ${state.model}`);
  card.text = element("p", "", "about");
  const table = element("table");
  const head = element("tr");
  head.append(...["limit", "now", "in force", "try", "judged"].map((text) => element("th", t(text))));
  const body = element("tbody");
  for (const limit of LIMITS) {
    const made = makeLimit(card, limit);
    card.limits.set(limit[0], made);
    body.append(made.row);
  }
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  const scroll = element("div", undefined, "scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "group");
  scroll.setAttribute("aria-label", `${t("Health of pictures")}: ${state.camera}`);
  scroll.append(table);
  card.how = element("pre");
  card.how.hidden = true;
  const again = button(t("Learn anew"), () => learn(state.camera, state.model));
  card.box.append(card.title, card.text, scroll, card.how, again);
  return card;
}

async function learn(camera, model) {
  const question = `${camera}: ${t("what is usual for its picture is learned anew from its next frames. Do so after it was moved or its light was changed.")}`;
  if (!(await sure(question))) return;
  await tell(say, () => remove(`v1/image_health?camera=${part(camera)}&model=${part(model)}`));
  await refresh();
}

function toml(card) {
  const lines = [...card.tried].map(([key, value]) => `${key} = ${value}`);
  return ["[[image_health_limits]]", `name = "${card.name}"`, ...lines].join("\n");
}

function refreshCard(card) {
  const { state } = card;
  const problems = Object.entries(state.problems).filter(([, count]) => count);
  card.text.textContent = [
    state.learning ? `${t("learns")}: ${state.learned_frames} / ${state.frames_to_learn}` : t("has learned its usual picture"),
    state.last ? t(state.last.ok ? "the last frame is healthy" : "the last frame is not healthy") : t("no frame since the start"),
    ...(state.last?.problems ?? []).map(t),
    problems.length ? `${t("since the start")}: ${problems.map(([name, count]) => `${t(name)} ${count}`).join(", ")}` : "",
  ]
    .filter(Boolean)
    .join(" · ");
  for (const [key, , measured, isLeast, , step] of LIMITS) {
    const row = card.limits.get(key);
    const now = state.last ? measured(state.last, state.size) : null;
    const bound = state.bounds[key];
    const tried = card.tried.get(key) ?? bound;
    row.now.textContent = shown(now, step);
    row.bound.textContent = bound === null ? t("learned") : shown(bound, step);
    if (!card.tried.has(key) && bound !== null) row.input.value = String(bound);
    const out = now !== null && tried !== null && (isLeast ? now < tried : now > tried);
    const value = card.tried.has(key) ? `${shown(tried, step)}: ` : "";
    row.verdict.textContent = now === null || tried === null ? "" : value + t(out ? "unsure" : "well");
    row.verdict.dataset.verdict = out ? "unsure" : "pass";
  }
  card.how.hidden = card.tried.size === 0;
  card.how.textContent = toml(card);
}

export async function refresh() {
  const { cameras } = await request("v1/image_health");
  const names = new Set(cameras.map(({ camera, model }) => `${camera}/${model}`));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    card.box.remove();
    cards.delete(name);
  }
  for (const state of cameras) {
    const name = `${state.camera}/${state.model}`;
    if (!cards.has(name)) {
      cards.set(name, makeCard(state));
      byId("health-cards").append(cards.get(name).box);
    }
    cards.get(name).state = state;
    refreshCard(cards.get(name));
  }
  show("health-empty", cameras.length === 0);
  show("health-how", cameras.length > 0);
}

export function start(sayAt) {
  say = sayAt;
}
