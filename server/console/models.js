// The tab Models: what serves, what could, and why a version was refused; the live swap.

import { name as part, noteAt, post, request, tell } from "./api.js";
import { button, byId, element, sure } from "./dom.js";
import { compare, whatChanges } from "./models/compare.js";
import { report } from "./models/report.js";
import { t } from "./words.js";

const say = noteAt("models-text");

const path = (name, action) => `v1/models/${part(name)}/${action}`;

// more: a promise of what else is said before it is done.
async function change(name, action, body, question, more = null) {
  if (!(await sure(question, more))) return;
  await tell(say, async () => {
    say(t("the version is loaded and checked…"));
    const options = body ? post(path(name, action), body) : request(path(name, action), { method: "POST" });
    const { note, serving } = await options;
    say(note ?? `${name}: ${t("now answers with")} ${t("version")} ${serving}`);
  });
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
  rows.push([t("serves"), `${t("version")} ${model.serving}, ${model.engine}`]);
  rows.push([t("quantisation"), manifest.quantization ?? "–"]);
  if (model.policy?.policy) rows.push([t("policy"), policyText(model.policy.policy)]);
  if (model.labels.length) rows.push([t("Label"), model.labels.slice(0, 12).join(", ")]);
  const drift = Object.entries(model.drift ?? {}).filter(([, value]) => value !== null);
  if (drift.length) rows.push([t("drift"), drift.map(([name, value]) => `${t(name)} ${value.toFixed(2)}`).join(", ")]);
  return rows;
}

function versionRow(model, version) {
  const row = element("li");
  const { name, serving } = model;
  row.append(element("b", `${t("version")} ${version}`));
  const failure = model.failures.find((each) => each.version === version);
  if (version === serving) row.append(element("span", t("serves"), "verdict"));
  else {
    const first = t("is checked with its golden frames, then it answers in place of");
    const question = serving
      ? `${name}: ${t("version")} ${version} ${first} ${t("version")} ${serving}. ${t("No frame is lost.")}`
      : `${name}: ${t("load version")} ${version}? ${t("It then answers the frames for this model.")}`;
    const activate = () => change(name, "activate", { version }, question, serving && whatChanges(name, version));
    row.append(button(t("Activate"), activate));
    if (serving) row.append(button(t("Compare"), () => compare(say, name, { with_version: version })));
  }
  if (failure) row.append(element("p", `${t("refused")}: ${failure.reason}`, "error"));
  return row;
}

// Compares with another model that takes images.
function compareWith(model, others) {
  const label = element("label", `${t("Compare with")} `);
  const choice = element("select");
  choice.append(element("option", "–"), ...others.map((name) => element("option", name)));
  choice.addEventListener("change", () => {
    if (others.includes(choice.value)) compare(say, model.name, { with_model: choice.value });
    choice.selectedIndex = 0;
  });
  label.append(choice);
  return label;
}

function card(model, all) {
  const made = element("section", undefined, "panel");
  const head = element("div", undefined, "panel-head");
  head.append(element("h2", model.name), element("span", model.task, "by"));
  const list = element("dl", undefined, "facts");
  for (const [name, text] of facts(model)) list.append(element("dt", name), element("dd", text));
  const versions = element("ul", undefined, "versions");
  versions.append(...model.versions.map((version) => versionRow(model, version)));
  const newest = `${model.name}: ${t("load the newest version on the disk that passes its check?")} ${t("It then answers the frames for this model.")}`;
  const place = model.serving ? `, ${t("in place of")} ${t("version")} ${model.serving}` : "";
  const back = `${model.name}: ${t("the version that served before answers again")}${place}.`;
  const actions = element("p", undefined, "actions");
  const backwards = button(t("Roll back"), () => change(model.name, "rollback", null, back));
  // Which of the others served before, the server knows.
  backwards.disabled = model.versions.length < 2;
  if (backwards.disabled) backwards.title = t("There is no other version to go back to.");
  actions.append(button(t("Load the newest"), () => change(model.name, "load", null, newest)), backwards);
  const isImage = ({ task, serving }) => task !== "tensor" && serving;
  const others = all.filter((each) => isImage(each) && each.name !== model.name);
  if (isImage(model) && others.length) actions.append(compareWith(model, others.map(({ name }) => name)));
  made.append(head, list, ...report(model), versions, actions);
  return made;
}

async function load(keepText = false) {
  try {
    const { models } = await request("v1/models");
    byId("model-cards").replaceChildren(...models.map((model) => card(model, models)));
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
    const url = path(name, "upload");
    const sent = await request(url, { method: "POST", body: file, headers });
    say(`${sent.model}/${sent.version} ${t("is on the device: compare it, then activate it")}`);
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
