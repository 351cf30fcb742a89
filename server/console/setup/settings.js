// Set up: the settings in force, and how each is changed.

import { request } from "../api.js";
import { addText, byId, element } from "../dom.js";
import { t } from "../words.js";

function row({ name, value, unit, help, source }) {
  const made = element("tr");
  made.dataset.words = `${name} ${help}`.toLowerCase();
  if (source !== "default") made.classList.add("set");
  const cells = [name, value === "" ? "–" : [value, unit].filter(Boolean).join(" "), t(source)];
  made.append(...cells.map((text) => element("td", text)), addText(element("td"), help));
  return made;
}

function find() {
  const wanted = byId("find").value.toLowerCase();
  let found = null;
  for (const each of byId("settings").children) {
    each.hidden = !each.dataset.words.includes(wanted);
    if (!each.hidden) found ??= each;
  }
  // How the one that was looked for is changed, in the three ways.
  const name = wanted && found?.firstChild.textContent;
  byId("setting-how").hidden = !name;
  if (name) {
    byId("setting-how").textContent =
      `lineside.toml:  ${name} = …\nLINESIDE_${name.toUpperCase()}=…\n--${name.replaceAll("_", "-")} …`;
  }
}

export async function load() {
  const { settings } = await request("v1/settings");
  // Those that somebody set come first.
  const isSet = ({ source }) => Number(source !== "default");
  byId("settings").replaceChildren(...[...settings].sort((a, b) => isSet(b) - isSet(a)).map(row));
  find();
}

export function start() {
  byId("find").addEventListener("input", find);
}
