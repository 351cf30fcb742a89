// The tab Try: what the model was shown of a frame, and where a classifier looked.

import { byId, sentence, show } from "../dom.js";
import { ask } from "../key.js";
import { showPlaces } from "../overlay.js";
import { t } from "../words.js";

// Below it, no place changes the odds of the label to speak of.
const LEAST = 0.5;

let frame = null; // What is offered to be explained: model, version, file.

export function forgetFrame() {
  frame = null;
  show("why", false);
}

export function offerWhy({ model, model_version: version }, blob) {
  frame = { model, version, blob };
  byId("why-text").textContent = "";
  byId("why-show").checked = false;
  show("why-shown", false);
  show("why", true);
}

function words({ label, places }) {
  if (!places.length) return t("Only classifiers have a map of where they looked.");
  const most = Math.max(...places.flat());
  if (most < LEAST) return t("No single place decides: the label stays if any of them is covered.");
  return `${t("Where it looked")}: ${t("the redder, the more the label depends on it")} (${label.replaceAll("_", " ")}).`;
}

function showExplanation(explanation) {
  const picture = byId("why-input");
  picture.src = `data:image/png;base64,${explanation.input}`;
  picture.alt = t("the frame as the model sees it");
  byId("why-text").textContent = words(explanation);
  const drawn = explanation.places.length > 0;
  byId("why-show").checked = drawn;
  byId("why-show").onchange = (event) => showPlaces(event.target.checked ? explanation : null);
  show("why-map", drawn);
  if (drawn) showPlaces(explanation);
  show("why-shown", true);
}

async function explain() {
  const mine = frame;
  const words = new URLSearchParams({ model: mine.model, version: mine.version });
  const form = new FormData();
  form.append("file", mine.blob, "frame");
  byId("why-ask").disabled = true;
  byId("why-text").textContent = t("covering the frame place by place…");
  try {
    const wanted = () => mine === frame;
    const response = await ask(`v1/explain?${words}`, { method: "POST", body: form }, wanted);
    const answer = await response.json();
    if (!wanted()) return;
    if (!response.ok) throw new Error(answer.error.message);
    showExplanation(answer);
  } catch (error) {
    if (mine === frame) byId("why-text").textContent = sentence(error.message);
  } finally {
    byId("why-ask").disabled = false;
  }
}

export function listenForWhy() {
  byId("why-ask").addEventListener("click", explain);
}
