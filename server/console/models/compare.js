// The tab Models: two versions or models side by side, on the same kept and sample frames.

import { name as part, post } from "../api.js";
import { byId, element, show } from "../dom.js";
import { t } from "../words.js";

const FRAMES = 24;

const title = (side) => `${side.model} ${side.version}`;

function counts({ verdicts }) {
  return Object.entries(verdicts)
    .map(([verdict, count]) => `${t(verdict)} ${count}`)
    .join(", ");
}

// The result in one sentence: what a person wants to know before a version is activated.
function summary({ frames, different, labelled, sides: [before, after] }) {
  if (frames.length === 0) return t("There is no frame to compare them on: keep samples, or send a bundle with some.");
  const words = [
    `${different} / ${frames.length} ${t("frames get another label or verdict.")}`,
    labelled ? `${t("Right on labelled frames")}: ${before.right} → ${after.right} / ${labelled}.` : "",
    `${t("Verdicts")}: ${counts(before)} → ${counts(after)}.`,
  ];
  return words.filter(Boolean).join(" ");
}

const ask = (name, body) => post(`v1/models/${part(name)}/compare`, { frames: FRAMES, ...body });

// Says what would change if `version` of `name` served.
export async function whatChanges(name, version) {
  try {
    return summary(await ask(name, { with_version: version }));
  } catch (error) {
    return error.message;
  }
}

function answerCell(answer) {
  const share = answer.probability === null ? "" : ` ${(answer.probability * 100).toFixed(0)} %`;
  const cell = element("td", answer.error ?? `${(answer.label ?? "–").replaceAll("_", " ")}${share}`);
  if (answer.verdict) {
    const verdict = element("span", t(answer.verdict));
    verdict.dataset.verdict = answer.verdict;
    cell.append(" ", verdict);
  }
  return cell;
}

function row(model, frame) {
  const made = element("tr");
  const [first, second] = frame.answers;
  if (first.label !== second.label || first.verdict !== second.verdict) made.classList.add("differs");
  const picture = element("img");
  picture.loading = "lazy";
  picture.alt = frame.file ?? frame.sample;
  picture.src = frame.sample
    ? `v1/samples/${part(frame.sample)}/image`
    : `v1/models/${part(model)}/samples/${part(frame.file)}`;
  const shown = element("td");
  shown.append(picture);
  made.append(shown, element("td", frame.label ?? "–"), answerCell(first), answerCell(second));
  return made;
}

export async function compare(say, name, body) {
  say(t("the same frames are shown to both…"));
  try {
    const found = await ask(name, body);
    say("");
    byId("compared-text").textContent = summary(found);
    byId("compared-sides").replaceChildren(
      ...found.sides.flatMap((side) => [
        element("dt", title(side)),
        element("dd", side.mean_ms === null ? "–" : `${side.mean_ms.toFixed(1)} ms ${t("a frame, beside the line")}`),
      ]),
    );
    byId("compared-a").textContent = title(found.sides[0]);
    byId("compared-b").textContent = title(found.sides[1]);
    byId("compared-rows").replaceChildren(...found.frames.map((frame) => row(name, frame)));
    show("compared", true);
    byId("compared-title").focus();
  } catch (error) {
    say(error.message);
  }
}
