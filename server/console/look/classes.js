// The tab Look: how many labels each class has, and what training on them takes.

import { byId, element, show } from "../dom.js";
import { t } from "../words.js";

// Below it, `convert train` refuses a class.
const FRAMES_MIN = 2;
const TOO_FEW = "To train a classifier, label at least two frames of two classes each.";
// Measured: 491 photographs in 6 minutes on two cores (README, «Make a bundle»).
const SECONDS_A_FRAME = 360 / 491;

function words(counts) {
  const enough = counts.filter(([, count]) => count >= FRAMES_MIN);
  if (enough.length < 2) {
    return t(TOO_FEW);
  }
  const frames = enough.reduce((sum, [, count]) => sum + count, 0);
  const minutes = Math.max(1, Math.round((frames * SECONDS_A_FRAME) / 60));
  const least = enough.reduce((a, b) => (b[1] < a[1] ? b : a));
  return (
    `${frames} ${t("labelled frames train in about")} ${minutes} min ${t("on two cores (491 took 6 minutes).")} ` +
    `${t("The fewest frames has")} ${least[0].replaceAll("_", " ")}: ${t("more of it help most.")}`
  );
}

// labels: counts by label, by model.
export function showClasses(labels) {
  const models = Object.entries(labels ?? {});
  const cells = models.flatMap(([model, counts]) =>
    Object.entries(counts)
      .sort((a, b) => b[1] - a[1])
      .map(([label, count]) => {
        const cell = element("div");
        cell.dataset.state = count < FRAMES_MIN ? "warning" : "ok";
        const name = label.replaceAll("_", " ");
        cell.append(element("dt", models.length > 1 ? `${model}: ${name}` : name), element("dd", String(count)));
        return cell;
      }),
  );
  byId("look-classes").replaceChildren(...cells);
  const all = models.flatMap(([, counts]) => Object.entries(counts));
  // One sentence for models of which none can be trained.
  const texts = models.map(([model, counts]) => [model, words(Object.entries(counts))]);
  const told = texts.filter(([, text]) => text !== t(TOO_FEW));
  byId("train-text").textContent =
    told.map(([model, text]) => (told.length > 1 ? `${model}: ${text}` : text)).join(" ") || t(TOO_FEW);
  show("look-export", all.length > 0);
}
