// What was found in a frame, drawn over its picture: boxes with their labels, and the heat map.
// Text is in the browser's fonts. Colours are those of server/recognition/drawing.py.

import { byId, show } from "./dom.js";

// [share of the scale, colour]: of scores up to the threshold, and of those above it.
const COLD = [[0, [24, 40, 120]], [1, [96, 200, 255]]];
const HOT = [[0, [255, 232, 64]], [0.4, [255, 128, 0]], [1, [176, 0, 32]]];
const LOOKED = [[0, [255, 232, 64]], [0.5, [255, 128, 0]], [1, [214, 0, 48]]];
// [score over threshold, opacity].
const OPACITY = [[0.8, [0]], [1, [0.3]], [1.000001, [0.5]], [2, [0.7]]];
const MARKS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2"];
const REGION = 4;
const NAMED_REGION = 6;
const TEXT_PX = 13;

let shown = null; // The answer that is drawn, and heat maps as images, each with its part of it.

function between(stops, at) {
  if (at <= stops[0][0]) return stops[0][1];
  for (let i = 1; i < stops.length; i += 1) {
    const [from, low] = stops[i - 1];
    const [to, high] = stops[i];
    if (at <= to) return low.map((value, n) => value + ((high[n] - value) * (at - from)) / (to - from));
  }
  return stops.at(-1)[1];
}

function colorsOf(threshold) {
  return Array.from({ length: 256 }, (_, level) => {
    const score = level / 255;
    const color =
      score > threshold
        ? between(HOT, (score - threshold) / Math.max(1 - threshold, 1e-6))
        : between(COLD, score / Math.max(threshold, 1e-6));
    return [...color, between(OPACITY, score / Math.max(threshold, 1e-6))[0] * 255];
  });
}

function paintHeat(paint, heat, box, threshold) {
  const { width, height } = paint.canvas;
  const grey = new OffscreenCanvas(width, height).getContext("2d");
  grey.drawImage(heat, ...box);
  const pixels = grey.getImageData(0, 0, width, height);
  const colors = colorsOf(threshold);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.set(pixels.data[i + 3] ? colors[pixels.data[i]] : [0, 0, 0, 0], i);
  }
  grey.putImageData(pixels, 0, 0);
  paint.drawImage(grey.canvas, 0, 0);
}

function paintMark(paint, box, text, color, size) {
  const [left, top, width, height] = box;
  paint.lineWidth = size / 3;
  paint.strokeStyle = "#101418";
  paint.strokeRect(left, top, width, height);
  paint.lineWidth = size / 8;
  paint.strokeStyle = color;
  paint.strokeRect(left, top, width, height);
  const wide = paint.measureText(text).width + size / 2;
  const x = Math.max(0, Math.min(left, paint.canvas.width - wide));
  const y = top >= size * 1.4 ? top - size * 1.4 : Math.max(0, top);
  paint.fillStyle = color;
  paint.fillRect(x, y, wide, size * 1.4);
  paint.fillStyle = "#101418";
  paint.fillText(text, x + size / 4, y + size * 0.7);
}

function paintAnswer() {
  const picture = byId("picture");
  const canvas = byId("overlay");
  const visible = shown !== null && !picture.hidden && picture.naturalWidth > 0;
  show("overlay", visible);
  if (!visible) return;
  const { answer, heats } = shown;
  const ratio = window.devicePixelRatio || 1;
  for (const [side, at] of [["width", "left"], ["height", "top"]]) {
    const name = side[0].toUpperCase() + side.slice(1);
    canvas[side] = Math.max(1, Math.round(picture[`client${name}`] * ratio));
    canvas.style[side] = `${picture[`client${name}`]}px`;
    canvas.style[at] = `${at === "left" ? picture.offsetLeft : picture.offsetTop}px`;
  }
  const paint = canvas.getContext("2d");
  const scale = [canvas.width / picture.naturalWidth, canvas.height / picture.naturalHeight];
  const place = (box) => box.map((value, i) => value * scale[i % 2]);
  const size = TEXT_PX * ratio;
  paint.font = `600 ${size}px system-ui, sans-serif`;
  paint.textBaseline = "middle";
  if (shown.explanation) {
    paintPlaces(paint, shown.explanation, place);
    return;
  }
  const whole = [0, 0, picture.naturalWidth, picture.naturalHeight];
  for (const [part, heat] of heats) {
    paintHeat(paint, heat, place(part.heatmap_box ?? whole), part.anomaly.threshold);
  }
  for (const { name, box, verdict } of answer.regions ?? []) {
    paintMark(paint, place(box), `${name} ${verdict ?? ""}`.trim(), MARKS[NAMED_REGION], size);
  }
  for (const { anomaly, detections } of partsOf(answer)) {
    for (const { box, score } of anomaly?.regions ?? []) {
      paintMark(paint, place(box), score.toFixed(2), MARKS[REGION], size);
    }
    // The most probable ones last, on top.
    for (const { box, label, probability, class_id: kind } of [...(detections ?? [])].reverse()) {
      const text = `${label} ${probability.toFixed(2)}`;
      paintMark(paint, place(box), text, MARKS[kind % MARKS.length], size);
    }
  }
}

// A map of where a classifier looked: how much a place speaks for the label, in 0..1 of the most.
function paintPlaces(paint, { places, box }, place) {
  const most = Math.max(...places.flat());
  const [rows, columns] = [places.length, places[0].length];
  const small = new OffscreenCanvas(columns, rows).getContext("2d");
  const pixels = small.createImageData(columns, rows);
  places.flat().forEach((value, i) => {
    const level = most > 0 ? Math.max(0, value) / most : 0;
    pixels.data.set([...between(LOOKED, level), 200 * level], i * 4);
  });
  small.putImageData(pixels, 0, 0);
  paint.imageSmoothingQuality = "high";
  paint.drawImage(small.canvas, ...place(box));
}

// Draws `explanation` in place of what else is drawn; null takes it away.
export function showPlaces(explanation) {
  if (!shown) return;
  shown.explanation = explanation;
  paintAnswer();
}

export function clearOverlay() {
  shown = null;
  paintAnswer();
}

// The answers to several regions of a frame; the answer itself without such.
const partsOf = (answer) => answer.regions ?? [answer];

// Draws `answer` once the picture and the heat maps are decoded.
export async function showOverlay(answer) {
  const mine = { answer, heats: [] };
  shown = mine;
  try {
    for (const part of partsOf(answer).filter(({ heatmap }) => heatmap)) {
      const heat = new Image();
      heat.src = `data:image/png;base64,${part.heatmap}`;
      await heat.decode();
      mine.heats.push([part, heat]);
    }
    await byId("picture").decode();
  } catch {
    // The browser can't show this picture, so there is nothing to draw over.
  }
  if (shown === mine) paintAnswer();
}

export function watchPicture() {
  new ResizeObserver(paintAnswer).observe(byId("picture"));
}
