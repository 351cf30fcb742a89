// The tab Set up: cameras, outputs, and the settings in force.

import { byId, element, sentence, show } from "./dom.js";
import { ask } from "./key.js";
import * as keys from "./keys.js";
import { t } from "./words.js";

const EVERY_MS = 2000;

let live = false;

function say(text) {
  byId("setup-text").textContent = text ? sentence(text) : "";
  show("setup-text", Boolean(text));
}

async function request(url, options) {
  const response = await ask(url, options, () => live);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? String(response.status));
  return answer;
}

async function trigger(name) {
  try {
    await request(`v1/cameras/${encodeURIComponent(name)}/trigger`, { method: "POST" });
    say("");
  } catch (error) {
    say(error.message);
  }
}

function cameraRow(camera) {
  const row = element("li");
  row.dataset.state = camera.state === "connected" ? "ready" : "down";
  const words = [camera.kind, camera.model, t(camera.state), camera.last_error];
  const button = element("button", t("Trigger"));
  button.type = "button";
  button.addEventListener("click", () => trigger(camera.name));
  row.append(element("b", camera.name), ` ${words.filter(Boolean).join(", ")} `, button);
  return row;
}

function outputRow(output) {
  const row = element("li");
  row.dataset.state = output.connected ? "ready" : "down";
  const words = [output.kind, output.connected ? t("connected") : t("not connected")];
  if (output.waiting) words.push(`${output.waiting} ${t("waiting")}`);
  if (output.last_error) words.push(output.last_error);
  row.append(element("b", output.name), ` ${words.join(", ")}`);
  return row;
}

function fill(id, rows, empty) {
  const box = byId(id);
  if (box.contains(document.activeElement)) return; // Whoever is about to press a button keeps it.
  box.replaceChildren(...(rows.length ? rows : [element("li", t(empty), "empty")]));
}

async function refresh() {
  if (!live) return;
  try {
    const [{ cameras }, { outputs }] = [await request("v1/cameras"), await request("v1/outputs")];
    const none = "No camera is read by this server. Cameras may also post their frames.";
    fill("setup-cameras", cameras.map(cameraRow), none);
    fill("setup-outputs", outputs.map(outputRow), "No output is set. Verdicts are only in the answers.");
  } catch (error) {
    say(error.message);
  }
  setTimeout(refresh, EVERY_MS);
}

async function showSettings() {
  try {
    const { settings } = await request("v1/settings");
    byId("settings").replaceChildren(
      ...settings.map(({ name, value, unit, help, source }) => {
        const row = element("tr");
        row.dataset.words = `${name} ${help}`.toLowerCase();
        if (source !== "default") row.classList.add("set");
        const cells = [name, value === "" ? "–" : [value, unit].filter(Boolean).join(" "), t(source), help];
        row.append(...cells.map((text) => element("td", text)));
        return row;
      }),
    );
    find();
  } catch (error) {
    say(error.message);
  }
}

function find() {
  const wanted = byId("find").value.toLowerCase();
  for (const row of byId("settings").children) row.hidden = !row.dataset.words.includes(wanted);
}

export function start() {
  byId("find").addEventListener("input", find);
  keys.start();
}

export function enter() {
  live = true;
  refresh();
  showSettings();
  keys.enter(() => live);
}

export function leave() {
  live = false;
  keys.leave();
}
