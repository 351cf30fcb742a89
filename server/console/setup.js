// The tab Set up: the health of every part, cameras, outputs, and the settings in force.

import { noteAt, tell } from "./api.js";
import { byId } from "./dom.js";
import * as keys from "./keys.js";
import * as alerts from "./setup/alerts.js";
import * as cameras from "./setup/cameras.js";
import * as health from "./setup/health.js";
import * as outputs from "./setup/outputs.js";
import * as settings from "./setup/settings.js";

const EVERY_MS = 2000;
const say = noteAt("setup-text");

let visit = 0; // Counted, so that a visit's turns end with it.
let live = false;
let lost = false; // The last turn failed, so that its sentence is taken back.

async function follow(mine) {
  while (live && mine === visit) {
    if (!document.hidden) {
      let well = true;
      for (const each of [alerts, cameras, health, outputs]) well &&= await tell(say, each.refresh);
      if (well && lost) say("");
      lost = !well;
      byId("tab-setup").classList.remove("unread");
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

export function start() {
  for (const each of [cameras, health, outputs, settings]) each.start(say, () => live);
  keys.start();
}

export function enter() {
  live = true;
  visit += 1;
  say("");
  cameras.enter();
  tell(say, settings.load);
  keys.enter(() => live);
  follow(visit);
}

export function leave() {
  live = false;
  keys.leave();
}
