// A region of a picture, drawn with the mouse or set by numbers: left, top, width and height, as
// shares of the picture.

import { element } from "../dom.js";
import { t } from "../words.js";

const SIDES = ["left", "top", "width", "height"];
const LEAST = 0.01;

const round = (share) => Math.round(share * 1e4) / 1e4;

// Returns `region` within the picture, and not without a size.
export function within([left, top, width, height]) {
  const x = round(Math.min(Math.max(0, left), 1 - LEAST));
  const y = round(Math.min(Math.max(0, top), 1 - LEAST));
  // Rounded down, so that no sum is more than 1.
  const most = (start, size) => Math.floor(Math.min(Math.max(LEAST, size), 1 - start) * 1e4) / 1e4;
  return [x, y, most(x, width), most(y, height)];
}

// A picture with a region on it, which `changed` is called with. `set` shows another one; an empty
// region is all of the picture.
export class RegionEditor {
  constructor(changed) {
    this.region = [];
    this.changed = changed;
    this.box = element("div", undefined, "region");
    this.picture = element("img");
    this.picture.alt = t("the newest frame of the camera");
    this.picture.draggable = false;
    this.mark = element("div", undefined, "region-mark");
    const stage = element("div", undefined, "region-stage");
    stage.append(this.picture, this.mark);
    this.numbers = element("div", undefined, "region-numbers");
    this.inputs = SIDES.map((side) => this.makeInput(side));
    this.box.append(stage, this.numbers);
    this.listen(stage);
  }

  makeInput(side) {
    const label = element("label", `${t(side)} % `);
    const input = element("input");
    Object.assign(input, { type: "number", min: 0, max: 100, step: 0.5, name: side });
    input.addEventListener("input", () => {
      const values = this.inputs.map((each) => Number(each.value) / 100);
      if (values.every(Number.isFinite)) this.take(within(values), input);
    });
    label.append(input);
    this.numbers.append(label);
    return input;
  }

  // Pointer events, so that a finger draws as a mouse does.
  listen(stage) {
    let from = null;
    const at = (event) => {
      const place = this.picture.getBoundingClientRect();
      const share = (value, start, size) => Math.min(1, Math.max(0, (value - start) / size));
      return [
        share(event.clientX, place.left, place.width),
        share(event.clientY, place.top, place.height),
      ];
    };
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.picture.naturalWidth) return;
      from = at(event);
      stage.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    stage.addEventListener("pointermove", (event) => {
      if (!from) return;
      const to = at(event);
      const [left, top] = [Math.min(from[0], to[0]), Math.min(from[1], to[1])];
      const size = [Math.abs(from[0] - to[0]), Math.abs(from[1] - to[1])];
      // A click that trembles is no region.
      if (Math.max(...size) > LEAST) this.take(within([left, top, ...size]));
    });
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, () => {
        from = null;
      });
    }
  }

  take(region, typed = null) {
    this.set(region, typed);
    this.changed(region);
  }

  set(region, typed = null) {
    this.region = region;
    const [left, top, width, height] = region.length ? region : [0, 0, 1, 1];
    const { style } = this.mark;
    style.left = `${left * 100}%`;
    style.top = `${top * 100}%`;
    style.width = `${width * 100}%`;
    style.height = `${height * 100}%`;
    this.mark.hidden = region.length === 0;
    [left, top, width, height].forEach((share, index) => {
      const input = this.inputs[index];
      if (input !== typed) input.value = String(Math.round(share * 1e4) / 100);
    });
  }
}
