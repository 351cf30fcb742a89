// The tab Models: the report of the version that serves, made by `convert` on held-back frames, and
// its golden frames.

import { element } from "../dom.js";
import { t } from "../words.js";

const percent = (share) => `${(share * 100).toFixed(1)} %`;

function table(head, rows) {
  const made = element("table");
  const [top, body] = [element("thead"), element("tbody")];
  const line = (cells, kind) => {
    const row = element("tr");
    row.append(...cells.map((text) => element(kind, text)));
    return row;
  };
  top.append(line(head, "th"));
  body.append(...rows.map((cells) => line(cells, "td")));
  made.append(top, body);
  return made;
}

function details(title, ...content) {
  const made = element("details");
  made.append(element("summary", title), ...content);
  return made;
}

function ofReport(found) {
  const parts = [];
  if (typeof found.top1 === "number") {
    const interval = found.interval ? `, ${t("95 % interval")} ${found.interval.map(percent).join("–")}` : "";
    const source = typeof found.top1_float === "number" ? `; ${t("its float source")} ${percent(found.top1_float)}` : "";
    parts.push(element("p", `${percent(found.top1)} ${t("right of")} ${found.images} ${t("held-back frames")}${interval}${source}.`));
  }
  const classes = Object.entries(found.classes ?? {});
  if (classes.length) {
    const rows = classes.map(([name, each]) => [
      name.replaceAll("_", " "),
      String(each.images ?? ""),
      ...["precision", "recall"].map((key) => (typeof each[key] === "number" ? percent(each[key]) : "–")),
    ]);
    parts.push(table(["Label", "frames", "precision", "recall"].map((word) => t(word)), rows));
  }
  const numbers = Object.entries(found).filter(([key, value]) => typeof value === "number" && !/^top1|^images$/.test(key));
  if (numbers.length) parts.push(element("p", numbers.map(([key, value]) => `${key.replaceAll("_", " ")} ${Number(value.toFixed(4))}`).join(", "), "about"));
  return parts;
}

function ofGolden(golden) {
  const rows = golden.map((each) => [
    each.file.replace("golden/", ""),
    each.label ?? "–",
    typeof each.probability === "number" ? each.probability.toFixed(3) : "–",
    typeof each.tolerance === "number" ? `± ${each.tolerance}` : "–",
  ]);
  return table(["Frame", "Label", "Probability", "tolerance"].map((word) => t(word)), rows);
}

export function report({ manifest }) {
  if (!manifest) return [];
  const made = [];
  if (manifest.report) {
    const accuracy = typeof manifest.report.top1 === "number" ? `: ${percent(manifest.report.top1)}` : "";
    made.push(details(`${t("Report")}${accuracy}`, ...ofReport(manifest.report)));
  }
  const golden = manifest.golden ?? [];
  const text = golden.length
    ? t("Each device checks these frames before the version serves, and again now and then.")
    : t("It has no golden frames: only its files are checked.");
  made.push(
    details(`${t("Golden frames")}: ${golden.length}`, element("p", text, "about"), ...(golden.length ? [ofGolden(golden)] : [])),
  );
  return made;
}
