// The tab Now: what the line does, live by server-sent events, else by asking now and then.

import { byId, element, show } from "./dom.js";
import { ask } from "./key.js";
import { t } from "./words.js";

const LISTED = 60;
const LOST_AFTER_MS = 5000;
const POLL_MS = 2000;
const PICTURE_EVERY_MS = 1000;
const BEHIND_MS = 5000; // For which a card goes on with the frame on its picture.
const KNOWN = 1000;

let live = false; // The tab is open.
let visit = null; // Of the tab: its AbortController, which ends what the visit began.
let number = 0; // Of the newest frame that was shown.
let frames = [];
const known = new Map(); // Frames by number, more than are listed: a picture comes after its frame.
let state = null;
let heard = performance.now(); // When the server was last heard.
const tiles = Object.create(null); // By camera: its elements, its last frame, when its picture was fetched.

const kindOf = (frame) => (frame.code ? "refused" : (frame.verdict ?? "none"));

function age(at) {
  const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

function showFigures({ last_minute: minute, temperature_c: celsius }) {
  const ms = (value) => (value === null ? "–" : value.toFixed(value < 100 ? 1 : 0));
  const rows = [
    ["parts a minute", minute.frames],
    ["pass", minute.verdicts.pass ?? 0, "pass"],
    ["fail", minute.verdicts.fail ?? 0, "fail"],
    ["unsure", minute.verdicts.unsure ?? 0, "unsure"],
    ["refused", minute.refused, minute.refused ? "fail" : ""],
    ["P50, ms", ms(minute.p50_ms)],
    ["P99, ms", ms(minute.p99_ms)],
  ];
  if (celsius !== null) rows.push(["temperature", `${celsius.toFixed(0)} °C`]);
  byId("figures").replaceChildren(
    ...rows.map(([name, value, verdict]) => {
      const cell = element("div");
      const number = element("dd", String(value));
      if (verdict) number.dataset.verdict = verdict;
      cell.append(element("dt", t(name)), number);
      return cell;
    }),
  );
}

function showStrip() {
  byId("strip").replaceChildren(
    ...frames.slice(-LISTED).map((frame) => {
      const kind = kindOf(frame);
      const cell = element("li", kind[0].toUpperCase());
      cell.dataset.verdict = kind;
      const words = [t(kind), frame.label, frame.camera, frame.part, frame.code, frame.reason];
      cell.title = `${words.filter(Boolean).join(", ")}, ${new Date(frame.at).toLocaleTimeString()}`;
      cell.setAttribute("aria-label", cell.title);
      return cell;
    }),
  );
  show("now-empty", frames.length === 0);
}

function makeTile(camera) {
  const tile = element("article", undefined, "tile");
  const picture = element("img");
  picture.alt = "";
  const parts = {
    tile,
    picture,
    name: element("h3", camera || t("without a camera")),
    verdict: element("span", "", "verdict"),
    text: element("p", t("no picture yet"), "about"),
    frame: null, // The newest.
    drawn: null, // The one on the picture; null for a picture without an answer.
    plain: null, // The number of the newest frame when such a picture was asked for.
    behind: null, // Since when there is a frame that is newer than the picture.
    fetched: 0,
    asking: false, // A picture is on its way: a second one could overtake it.
  };
  const head = element("div", undefined, "tile-head");
  head.append(parts.name, parts.verdict);
  tile.append(picture, head, parts.text);
  return parts;
}

// The frame that an answer was drawn on; all that is known of one that is not listed yet.
function frameOf({ headers }) {
  const of = Number(headers.get("X-Frame-Number"));
  return known.get(of) ?? { number: of, verdict: headers.get("X-Verdict"), label: null, part: "", at: null };
}

// Returns where a picture of the camera is; null if there is none that is newer than the shown one.
function pictureUrl(camera, tile, pulled) {
  const name = encodeURIComponent(camera);
  if (state?.pictures.includes(camera)) {
    return tile.frame && tile.drawn?.number !== tile.frame.number ? `v1/now/picture?camera=${name}` : null;
  }
  // Its last frame came before anybody looked.
  return pulled?.frames && !tile.picture.src ? `v1/cameras/${name}/frame` : null;
}

async function fetchPicture(camera, tile, pulled) {
  if (document.hidden || tile.asking || performance.now() - tile.fetched < PICTURE_EVERY_MS) return;
  const from = pictureUrl(camera, tile, pulled);
  if (!from) return;
  tile.fetched = performance.now();
  tile.asking = true;
  const newest = tile.frame?.number ?? 0;
  try {
    const response = await ask(from, {}, () => live);
    if (!response.ok) return;
    const url = URL.createObjectURL(await response.blob());
    const before = tile.picture.src;
    tile.picture.src = url;
    // A busy server may send the picture of an earlier frame; then the newest is asked for again.
    const drawn = response.headers.has("X-Frame-Number") ? frameOf(response) : null;
    if (drawn?.number !== tile.drawn?.number) tile.behind = null;
    [tile.drawn, tile.plain] = [drawn, drawn ? null : newest];
    if (before) URL.revokeObjectURL(before);
    showTile(camera);
  } catch {
    // The next frame brings another one.
  } finally {
    tile.asking = false;
  }
}

// Returns the frame that the card tells of: that of its picture, so that the two agree. But a frame
// without a picture, such as a refused one, is told of at once, and any after some seconds.
function toldOf(tile) {
  tile.drawn = known.get(tile.drawn?.number) ?? tile.drawn;
  const { frame, drawn } = tile;
  if (!drawn || !frame || drawn.number >= frame.number) {
    tile.behind = null;
    return drawn ?? frame;
  }
  tile.behind ??= performance.now();
  return frame.code || performance.now() - tile.behind > BEHIND_MS ? frame : drawn;
}

function showTile(camera) {
  const tile = tiles[camera];
  const pulled = state?.cameras.find(({ name }) => name === camera);
  const frame = toldOf(tile);
  const lost = pulled && pulled.state !== "connected";
  const isNewer = tile.drawn ? frame !== tile.drawn : tile.plain !== null && frame && frame.number !== tile.plain;
  tile.tile.classList.toggle("before", Boolean(lost || isNewer));
  const kind = lost ? "refused" : frame ? kindOf(frame) : "none";
  tile.verdict.textContent = lost ? t(pulled.state) : frame ? t(kind) : "–";
  tile.verdict.dataset.verdict = kind;
  tile.tile.dataset.verdict = kind;
  const words = frame ? [frame.label ?? frame.code, frame.part, frame.at && `${age(frame.at)} ${t("ago")}`] : [];
  if (tile.plain !== null && !frame) words.push(`${Math.round(pulled?.frame_age_s ?? 0)} s ${t("ago")}`);
  if (pulled?.last_error) words.push(pulled.last_error);
  if (words.length) tile.text.textContent = words.filter(Boolean).join(" · ");
  fetchPicture(camera, tile, pulled);
}

function showTiles() {
  for (const { name } of state?.cameras ?? []) tiles[name] ??= makeTile(name);
  for (const frame of frames) {
    const camera = frame.camera ?? "";
    tiles[camera] ??= makeTile(camera);
    tiles[camera].frame = frame;
  }
  const names = Object.keys(tiles);
  const box = byId("tiles");
  if (box.children.length !== names.length) {
    box.replaceChildren(...names.map((name) => tiles[name].tile));
  }
  names.forEach(showTile);
}

function showOutputs({ outputs }) {
  byId("outputs").replaceChildren(
    ...outputs.map((output) => {
      const row = element("li");
      row.dataset.state = output.connected ? "ready" : "down";
      const words = [output.connected ? t("connected") : t("not connected")];
      if (output.waiting) words.push(`${output.waiting} ${t("waiting")}`);
      if (output.last_error) words.push(output.last_error);
      row.append(element("b", output.name), ` ${output.kind}: ${words.join(", ")}`);
      return row;
    }),
  );
  show("outputs-box", outputs.length > 0);
}

// What a server has told that was started anew since: it counts from the beginning.
function forget() {
  [number, frames] = [0, []];
  known.clear();
  for (const tile of Object.values(tiles)) {
    [tile.frame, tile.drawn, tile.behind] = [null, null, null];
    tile.plain = tile.picture.src ? 0 : null;
  }
}

function take(newer) {
  if (newer.length === 0) return;
  if (newer.at(-1).number < number) forget();
  for (const each of newer) known.set(each.number, each);
  for (const each of known.keys()) {
    if (known.size <= KNOWN) break;
    known.delete(each);
  }
  frames = [...frames, ...newer.filter((each) => each.number > number)].slice(-LISTED);
  number = newer.at(-1).number;
}

function hear(now) {
  heard = performance.now();
  if (now.number < number) forget();
  state = now;
  byId("tab-now").classList.remove("unread");
  take(now.frames);
  showFigures(now);
  showOutputs(now);
  showStrip();
  showTiles();
  byId("not-ready").textContent = now.ready ? "" : `${t("Not ready")}: ${now.not_ready}`;
  show("not-ready", !now.ready);
}

function hearFrames(newer) {
  heard = performance.now();
  take(newer);
  showStrip();
  showTiles();
}

function dispatch(block) {
  const fields = Object.fromEntries(
    block.split("\n").map((line) => [line.split(":", 1)[0], line.slice(line.indexOf(":") + 2)]),
  );
  if (fields.event === "now") hear(JSON.parse(fields.data));
  else if (fields.event === "frames") hearFrames(JSON.parse(fields.data));
}

// EventSource does not say why it was refused, such as for want of a key, so fetch reads the stream.
async function readStream(signal) {
  const response = await ask("v1/events", { signal }, () => !signal.aborted);
  if (!response.ok) throw new Error(String(response.status));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done || signal.aborted || document.hidden) {
      reader.cancel();
      return;
    }
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    blocks.forEach(dispatch);
  }
}

async function poll(signal) {
  const response = await ask(`v1/now?after=${number}`, { signal }, () => !signal.aborted);
  if (response.ok) hear(await response.json());
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A page that nobody sees asks for nothing.
function seen() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
  }).then(() => {
    heard = performance.now();
    return seen();
  });
}

async function follow(signal) {
  while (!signal.aborted) {
    await seen();
    try {
      await readStream(signal);
    } catch {
      await poll(signal).catch(() => {});
      await pause(POLL_MS);
    }
  }
}

function tick(signal) {
  if (signal.aborted) return;
  const lost = performance.now() - heard > LOST_AFTER_MS;
  const since = new Date(Date.now() - (performance.now() - heard)).toLocaleTimeString();
  byId("no-data").textContent = `${t("No data from the server since")} ${since}`;
  show("no-data", lost);
  byId("tab-now").classList.toggle("stale", lost);
  Object.keys(tiles).forEach(showTile);
  setTimeout(tick, 1000, signal);
}

export function enter() {
  live = true;
  visit = new AbortController();
  heard = performance.now();
  follow(visit.signal);
  tick(visit.signal);
}

export function leave() {
  live = false;
  visit.abort();
}
