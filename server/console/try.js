// The tab Try: sends one image to /v1/recognize and shows what came back.

import { byId, element, sentence, show } from "./dom.js";
import { ask } from "./key.js";
import { clearOverlay, showOverlay, watchPicture } from "./overlay.js";
import { forgetFrame, listenForWhy, offerWhy } from "./try/why.js";
import { showSnippets } from "./try/snippets.js";
import { t } from "./words.js";

const STAGES = ["decode", "preprocess", "wait", "inference", "total"];

let sent = 0; // The newest request; an answer to an older one is not shown.
let shownUrl = null;
let listing = false; // The models are asked for, maybe until there is a key.
let listed = false;

function clearAnswer() {
  const parts = ["empty", "error", "labels", "facts", "timing", "raw", "verdict", "by"];
  for (const id of parts) show(id, false);
  forgetFrame();
  clearOverlay();
}

function showNothing() {
  clearAnswer();
  show("empty", true);
}

function showError(text) {
  clearAnswer();
  byId("error").textContent = sentence(text);
  show("error", true);
}

function showLabels(predictions) {
  byId("labels").replaceChildren(
    ...predictions.map(({ label, probability }) => {
      const row = element("li");
      const percent = `${(probability * 100).toFixed(1)} %`;
      const bar = element("div", undefined, "bar");
      const filled = element("div");
      filled.style.width = `${probability * 100}%`;
      bar.append(filled);
      row.append(element("span", label.replaceAll("_", " "), "name"));
      row.append(element("span", percent, "share"), bar);
      return row;
    }),
  );
  show("labels", true);
}

function showRows(id, rows) {
  byId(id).replaceChildren(
    ...rows.map(([name, text]) => {
      const row = element("div");
      row.append(element("dt", name), element("dd", text));
      return row;
    }),
  );
  show(id, rows.length > 0);
}

function showTiming(timing, round) {
  const rows = STAGES.filter((stage) => stage in timing).map((stage) => [t(stage), timing[stage]]);
  rows.push([t("round trip"), round]);
  showRows("timing", rows.map(([name, ms]) => [name, `${ms.toFixed(1)} ms`]));
}

function showFacts({ verdict_reason: reason, familiar, familiarity, anomaly, detections, regions }) {
  const rows = (regions ?? []).map(({ name, verdict, verdict_reason: why, predictions }) => [
    name,
    [verdict && t(verdict), why?.replaceAll("_", " "), predictions[0]?.label].filter(Boolean).join(", "),
  ]);
  if (reason) rows.push([t("decided by"), reason.replaceAll("_", " ")]);
  if (familiar !== undefined) {
    rows.push([t("familiar"), `${familiar ? "yes" : "no"}, ${familiarity.toFixed(2)}`]);
  }
  if (anomaly) {
    const { score, threshold } = anomaly;
    rows.push([t("anomaly score"), `${score.toFixed(2)}, threshold ${threshold.toFixed(2)}`]);
  }
  if (detections) rows.push([t("objects"), String(detections.length)]);
  showRows("facts", rows);
}

function showAnswer(answer, round, blob) {
  clearAnswer();
  if (answer.recognized) {
    showLabels(answer.predictions);
  } else {
    const nothing = t("nothing that the model knows was found in the frame");
    showError(answer.detections ? nothing : t("no label is probable enough to be named"));
  }
  showFacts(answer);
  showOverlay(answer);
  if (answer.verdict) {
    byId("verdict").textContent = t(answer.verdict);
    byId("verdict").dataset.verdict = answer.verdict;
    show("verdict", true);
  }
  byId("by").textContent = `${answer.model}, ${t("version")} ${answer.model_version}`;
  show("by", true);
  showTiming(answer.timing_ms, round);
  byId("raw").querySelector("pre").textContent = JSON.stringify(
    answer,
    (name, value) => (name === "heatmap" ? "(a PNG in base64)" : value),
    2,
  );
  show("raw", true);
  offerWhy(answer, blob);
}

function showPicture(blob, name) {
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = URL.createObjectURL(blob);
  const picture = byId("picture");
  const size = `${Math.max(1, Math.round(blob.size / 1000))} kB`;
  byId("about").textContent = `${name}, ${size}`;
  picture.onload = () => {
    byId("about").textContent =
      `${name}, ${picture.naturalWidth} × ${picture.naturalHeight} pixels, ${size}`;
  };
  // The browser may not show what the server reads (TIFF), or the other way round.
  picture.onerror = () => {
    picture.hidden = true;
    show("invite", true);
  };
  picture.alt = name;
  picture.src = shownUrl;
  picture.hidden = false;
  show("invite", false);
  byId("drop").classList.add("full");
}

function route() {
  const model = byId("model").value;
  return `v1/recognize${model ? `?model=${encodeURIComponent(model)}` : ""}`;
}

function showAddress() {
  showSnippets(`${location.origin}/${route()}`);
}

async function recognize(blob, name) {
  const mine = ++sent;
  showPicture(blob, name);
  const form = new FormData();
  form.append("file", blob, name);
  const started = performance.now();
  let response;
  let answer;
  try {
    const wanted = () => mine === sent;
    const url = `${route()}${route().includes("?") ? "&" : "?"}heatmap=true`;
    response = await ask(url, { method: "POST", body: form }, wanted);
    answer = await response.json();
  } catch {
    if (mine === sent) showError(t("the server can't be reached"));
    return;
  }
  if (mine !== sent) return;
  if (response.ok) {
    showAnswer(answer, performance.now() - started, blob);
  } else {
    showError(answer.error?.message ?? `the server answered with the status ${response.status}`);
  }
}

function press(button) {
  for (const other of byId("samples").children) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

function take(files) {
  const [file] = files;
  if (!file) return;
  press(null);
  recognize(file, file.name || "pasted image");
}

async function fetchImage(url, wanted) {
  const response = await ask(url, {}, wanted);
  if (!response.ok) throw new Error(String(response.status));
  return response.blob();
}

async function trySample(button, url, name) {
  const mine = ++sent;
  press(button);
  let blob;
  try {
    blob = await fetchImage(url, () => mine === sent);
  } catch {
    if (mine === sent) showError(`the sample frame ${name} can't be fetched`);
    return;
  }
  if (mine === sent) await recognize(blob, name);
}

// An <img> can't send a key, so that its picture is fetched for it.
async function showThumbnail(picture, url) {
  try {
    picture.src = URL.createObjectURL(await fetchImage(url));
    await picture.decode();
  } catch {
    // The name below it is enough.
  }
  URL.revokeObjectURL(picture.src);
}

async function showSamples(model) {
  const base = `v1/models/${encodeURIComponent(model)}/samples`;
  const wanted = () => model === byId("model").value;
  let samples = [];
  try {
    const response = await ask(base, {}, wanted);
    if (response.ok) ({ samples } = await response.json());
  } catch {
    samples = [];
  }
  if (!wanted()) return;
  byId("samples").replaceChildren(
    ...samples.map((name) => {
      const url = `${base}/${encodeURIComponent(name)}`;
      const button = element("button");
      const picture = element("img");
      picture.alt = "";
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.append(picture, name.replace(/\.\w+$/, "").replaceAll("_", " "));
      button.addEventListener("click", () => trySample(button, url, name));
      showThumbnail(picture, url);
      return button;
    }),
  );
  show("samples", samples.length > 0);
}

async function showModels() {
  const response = await ask("v1/models");
  if (!response.ok) throw new Error(String(response.status));
  const { models } = await response.json();
  const takeImages = models.filter(({ task }) => task !== "tensor");
  byId("model").replaceChildren(
    ...takeImages.map(({ name, default: isDefault }) => {
      const option = element("option", name);
      option.value = name;
      option.selected = isDefault;
      return option;
    }),
  );
  showAddress();
  await showSamples(byId("model").value);
}

async function listModels() {
  if (listing) return;
  listing = true;
  try {
    await showModels();
    listed = true;
  } catch {
    listed = false;
  }
  listing = false;
}

// Whether a frame was sent, or is to be sent once there is a key.
export const isUsed = () => sent > 0;

// Called while the server is ready, until the models are listed.
export function serverIsReady(ready) {
  if (!ready) listed = false;
  else if (!listed) listModels();
}

function listen() {
  const drop = byId("drop");
  showAddress();
  byId("key-form").addEventListener("asked", showNothing);
  for (const id of ["file", "photo"]) {
    byId(id).addEventListener("change", (event) => {
      take(event.target.files);
      event.target.value = "";
    });
  }
  listenForWhy();
  byId("model").addEventListener("change", (event) => {
    showAddress();
    showSamples(event.target.value);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
}

export function start() {
  watchPicture();
  listen();
}
