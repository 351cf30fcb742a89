// Set up: the alerts that would fire, and the health of every part.

import { request } from "../api.js";
import { byId, element } from "../dom.js";
import { t } from "../words.js";

// `LinesideCameraLost`: «Camera lost», or the words of the language.
function nameOf(alert) {
  const words = t(alert);
  if (words !== alert) return words;
  const plain = alert.replace("Lineside", "").replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}

function alertRow(alert) {
  const row = element("li");
  row.dataset.state = alert.state === "firing" && alert.severity === "critical" ? "down" : "wait";
  const state =
    alert.state === "firing"
      ? t("would fire")
      : `${t("fires if it holds for")} ${alert.for_s >= 60 ? `${alert.for_s / 60} min` : `${alert.for_s} s`}`;
  const name = [nameOf(alert.alert), alert.subject].filter(Boolean).join(": ");
  const since = `${t("since")} ${new Date(alert.since).toLocaleTimeString()}`;
  row.title = alert.alert;
  row.append(element("b", name), ` ${alert.text} `, element("span", `${t(alert.severity)}, ${state}, ${since}`, "about"));
  return row;
}

// `disk used (data)`: what is in brackets is a name.
function partName(text) {
  const [, words, name] = /^(.*?)(?: \((.*)\))?$/.exec(text);
  return name ? `${t(words)} (${name})` : t(words);
}

function partCell(part) {
  const cell = element("div");
  cell.dataset.state = part.state;
  cell.append(element("dt", partName(part.part)), element("dd", part.state === "off" ? t("off") : part.value));
  return cell;
}

export async function refresh() {
  const { alerts, parts, reach_s: reach } = await request("v1/alerts");
  byId("alerts").replaceChildren(
    ...(alerts.length ? alerts.map(alertRow) : [element("li", t("No alert would fire."), "empty")]),
  );
  byId("parts").replaceChildren(...parts.map(partCell));
  byId("alerts-reach").textContent =
    `${t("By this server's own metrics of the last")} ${Math.max(1, Math.round(reach / 60))} min. ` +
    t("Prometheus, with deploy/prometheus, sees also a server that is gone, and wakes people.");
}
