// Set up: the cameras that the server reads; one more, its picture, its region.

import { name as part, post, remove, request, tell } from "../api.js";
import { button, byId, element, show, sure } from "../dom.js";
import { ask } from "../key.js";
import { t } from "../words.js";
import { RegionEditor } from "./region.js";

const PICTURE_EVERY_MS = 1000;
// The fields of the form by the kind of camera.
const FIELDS = {
  rtsp: ["url", "username", "password"],
  http: ["url", "username", "password"],
  mjpeg: ["url", "username", "password"],
  usb: ["device"],
  video: ["path", "loop"],
  folder: ["path"],
};
const EMPTY = "No camera is read by this server. Cameras may also post their frames.";

const rows = new Map(); // By camera: its row's elements.
let say = () => {};
let isLive = () => false;

const url = (camera, rest = "") => `v1/cameras/${part(camera)}${rest}`;

// The picture of one camera with the region that is judged, for as long as it is open.
class View {
  constructor(camera) {
    this.camera = camera;
    this.box = element("div", undefined, "camera-view");
    this.editor = new RegionEditor(() => this.drawn());
    this.text = element("p", t("waiting for a frame…"), "about");
    this.text.setAttribute("role", "status");
    this.save = button(t("Judge this region"), () => this.send(this.editor.region), "main");
    this.whole = button(t("Judge the whole frame"), () => this.send([]));
    this.how = element("pre");
    this.how.hidden = true;
    const actions = element("p", undefined, "actions");
    actions.append(this.save, this.whole);
    const about = element("p", t("Drag over the picture, or set the numbers."), "about");
    this.box.append(about, this.editor.box, actions, this.how, this.text);
    this.editor.set(camera.region);
    this.save.disabled = true;
    this.whole.disabled = camera.region.length === 0;
  }

  drawn() {
    this.save.disabled = false;
    if (this.camera.added) return;
    this.save.disabled = true;
    this.how.textContent = `[[camera]]\nname = "${this.camera.name}"\nregion = ${JSON.stringify(this.editor.region)}`;
    this.how.hidden = false;
    this.text.textContent = t(
      "This camera is in the settings: write the region into its table there, and start the server again.",
    );
  }

  async send(region) {
    const { name } = this.camera;
    await tell(say, async () => {
      this.camera = await post(url(name), { region });
      this.editor.set(region);
      this.save.disabled = true;
      this.whole.disabled = region.length === 0;
      this.text.textContent = t(region.length ? "This region is judged from now on." : "The whole frame is judged from now on.");
    });
  }

  async follow() {
    while (this.box.isConnected && isLive()) {
      const taken = rows.get(this.camera.name)?.camera.frames;
      if (taken && !document.hidden) await this.fetch().catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, PICTURE_EVERY_MS));
    }
  }

  async fetch() {
    const response = await ask(url(this.camera.name, "/frame"), {}, isLive);
    if (!response.ok) return;
    const { picture } = this.editor;
    const before = picture.src;
    picture.src = URL.createObjectURL(await response.blob());
    if (before) URL.revokeObjectURL(before);
    else this.text.textContent = "";
  }
}

function words(camera) {
  const age = camera.frame_age_s;
  return [
    camera.kind,
    camera.model,
    t(camera.state),
    age === null ? "" : `${Math.round(age)} s ${t("ago")}`,
    camera.region.length ? t("a region") : "",
    camera.last_error,
  ];
}

function makeRow(camera) {
  const row = element("li", undefined, "camera");
  const text = element("span");
  const trigger = button(t("Trigger"), () =>
    tell(say, async () => {
      await request(url(camera.name, "/trigger"), { method: "POST" });
      say(`${camera.name}: ${t("a frame was asked for, and is judged")}`);
    }),
  );
  const picture = button(t("Picture and region"), () => toggle(camera.name));
  picture.setAttribute("aria-expanded", "false");
  row.append(element("b", camera.name), text, picture, trigger);
  if (camera.added) row.append(button(t("Delete"), () => forget(camera.name)));
  return { row, text, picture, view: null, camera };
}

function toggle(name) {
  const each = rows.get(name);
  if (each.view) {
    each.view.box.remove();
    each.view = null;
  } else {
    each.view = new View(each.camera);
    each.row.append(each.view.box);
    each.view.follow();
  }
  each.picture.setAttribute("aria-expanded", String(each.view !== null));
}

async function forget(name) {
  const question = `${name}: ${t("the server reads this camera no more. Its frames in the journal stay.")}`;
  if (await sure(question)) await tell(say, () => remove(url(name)));
  await refresh();
}

export async function refresh() {
  const { cameras } = await request("v1/cameras", {}, isLive);
  const box = byId("setup-cameras");
  for (const name of [...rows.keys()]) {
    const now = cameras.find((each) => each.name === name);
    if (now && now.added === rows.get(name).camera.added) continue;
    rows.get(name).row.remove();
    rows.delete(name);
  }
  box.querySelector(".empty")?.remove();
  for (const camera of cameras) {
    if (!rows.has(camera.name)) {
      rows.set(camera.name, makeRow(camera));
      box.append(rows.get(camera.name).row);
    }
    const each = rows.get(camera.name);
    each.camera = camera;
    each.row.dataset.state = camera.state === "connected" ? "ready" : "down";
    each.text.textContent = ` ${words(camera).filter(Boolean).join(", ")} `;
  }
  if (cameras.length === 0) box.append(element("li", t(EMPTY), "empty"));
}

function showFields() {
  const form = byId("camera-form");
  const wanted = FIELDS[form.elements.kind.value];
  for (const name of new Set(Object.values(FIELDS).flat())) {
    const input = form.elements[name];
    const used = wanted.includes(name);
    input.closest("label").hidden = !used;
    input.disabled = !used;
  }
}

async function add(event) {
  event.preventDefault();
  const form = event.target;
  const { loop, interval_s: interval, ...texts } = Object.fromEntries(new FormData(form));
  const table = Object.fromEntries(Object.entries(texts).filter(([, value]) => value !== ""));
  table.interval_s = Number(interval);
  if (loop) table.loop = true;
  const done = await tell(say, async () => {
    const { name } = await post("v1/cameras", table);
    say("");
    form.reset();
    showFields();
    show("camera-form", false);
    await refresh();
    toggle(name);
    rows.get(name).picture.focus();
  });
  byId("camera-add").setAttribute("aria-expanded", String(!done));
}

async function showModels() {
  const { models } = await request("v1/models", {}, isLive);
  const images = models.filter(({ task }) => task !== "tensor").map(({ name }) => name);
  const options = images.map((name) => Object.assign(element("option", name), { value: name }));
  byId("camera-form").elements.model.replaceChildren(
    Object.assign(element("option", t("the default one")), { value: "" }),
    ...options,
  );
}

export function start(sayAt, live) {
  [say, isLive] = [sayAt, live];
  const form = byId("camera-form");
  form.addEventListener("submit", add);
  form.elements.kind.addEventListener("change", showFields);
  byId("camera-add").addEventListener("click", () => {
    show("camera-form", form.hidden);
    byId("camera-add").setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) form.elements.name.focus();
  });
  showFields();
}

export function enter() {
  tell(say, showModels);
  // Pictures that were open when the tab was left go on.
  for (const { view } of rows.values()) view?.follow();
}
