// The tab Models: what serves, what could, and why a version was refused; the live swap.

import { noteAt, request } from "./api.js";
import { button, byId, element, sure } from "./dom.js";
import { t } from "./words.js";

const say = noteAt("models-text");

async function change(name, action, body, question) {
  if (question && !(await sure(question))) return;
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: body ? JSON.stringify(body) : undefined };
  try {
    const { note } = await request(`v1/models/${encodeURIComponent(name)}/${action}`, options);
    say(note ?? "");
  } catch (error) {
    say(error.message);
  }
  await load(true);
}

// `accept: good, min_probability: 0.5`, without what is not set.
function policyText(policy) {
  const set = Object.entries(policy).filter(([, value]) => value !== null && value !== undefined);
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const shown = (value) => (Array.isArray(value) ? value.map(text).join(", ") : text(value));
  return set.map(([name, value]) => `${name.replaceAll("_", " ")}: ${shown(value)}`).join("; ");
}

function facts(model) {
  const rows = [];
  const { manifest } = model;
  if (!manifest) return [[t("serves"), t("not loaded; it is with its first frame")]];
  rows.push([t("serves"), `${t("version")} ${model.serving}`]);
  rows.push([t("quantisation"), manifest.quantization ?? "–"]);
  if (typeof manifest.report?.top1 === "number") {
    rows.push([t("accuracy"), `${(manifest.report.top1 * 100).toFixed(2)} %`]);
  }
  if (model.policy?.policy) rows.push([t("policy"), policyText(model.policy.policy)]);
  if (model.labels.length) rows.push([t("Label"), model.labels.slice(0, 12).join(", ")]);
  return rows;
}

function versionRow(model, version) {
  const row = element("li");
  const serves = version === model.serving;
  row.append(element("b", `${t("version")} ${version}`));
  const failure = model.failures.find((each) => each.version === version);
  if (serves) row.append(element("span", t("serves"), "verdict"));
  else {
    const question = model.serving
      ? `${model.name}: version ${version} is checked with its golden frames, then it answers in place of version ${model.serving}. No frame is lost.`
      : `${model.name}: version ${version} is loaded and answers from then on.`;
    row.append(
      button(t("Activate"), () => change(model.name, "activate", { version }, question)),
    );
  }
  if (failure) row.append(element("p", failure.reason, "error"));
  return row;
}

function card(model) {
  const made = element("section", undefined, "panel");
  const head = element("div", undefined, "panel-head");
  head.append(element("h2", model.name), element("span", model.task, "by"));
  const list = element("dl", undefined, "facts");
  for (const [name, text] of facts(model)) list.append(element("dt", name), element("dd", text));
  const versions = element("ul", undefined, "versions");
  versions.append(...model.versions.map((version) => versionRow(model, version)));
  const back = `${model.name}: the version that served before answers again, in place of version ${model.serving}.`;
  const actions = element("p", undefined, "actions");
  actions.append(
    button(t("Load the newest"), () => change(model.name, "load")),
    button(t("Roll back"), () => change(model.name, "rollback", null, back)),
  );
  made.append(head, list, versions, actions);
  return made;
}

async function load(keepText = false) {
  try {
    const { models } = await request("v1/models");
    byId("model-cards").replaceChildren(...models.map(card));
    if (!keepText) say("");
  } catch (error) {
    say(error.message);
  }
}

async function upload(event) {
  event.preventDefault();
  const { name, file } = Object.fromEntries(new FormData(event.target));
  const headers = { "Content-Type": "application/x-tar" };
  try {
    const url = `v1/models/${encodeURIComponent(name)}/upload`;
    const sent = await request(url, { method: "POST", body: file, headers });
    say(`${sent.model}/${sent.version} is on the device: activate it`);
    event.target.reset();
  } catch (error) {
    say(error.message);
  }
  await load(true);
}

export function start() {
  byId("upload").addEventListener("submit", upload);
}

export function enter() {
  load();
}
