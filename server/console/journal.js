// The tab Journal: the answered frames, filtered, with a chart of their verdicts by the hour.

import { request } from "./api.js";
import { button, byId, element, sentence, show } from "./dom.js";
import { ask } from "./key.js";
import { t } from "./words.js";

const PAGE = 200;
const CHART_ROWS_MAX = 5000; // Of the newest rows, in pages of 1000.
const KINDS = ["pass", "unsure", "fail", "none", "refused"];

let next = null;
let loads = 0;

const kindOf = (row) => (row.code ? "refused" : (row.verdict ?? "none"));

function filters() {
  const words = new URLSearchParams();
  for (const [name, value] of new FormData(byId("journal-filter"))) {
    if (!value) continue;
    if (name === "since") words.set(name, new Date(Date.now() - value * 3.6e6).toISOString());
    else words.set(name, value);
  }
  return words;
}

async function page(words) {
  const response = await ask(`v1/journal?${words}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? String(response.status));
  return answer;
}

// The frame of a row is there if it was kept as a sample.
async function showFrame(row, line, asked) {
  const shown = line.nextElementSibling;
  if (shown?.classList.contains("frame")) {
    shown.remove();
    asked.setAttribute("aria-expanded", "false");
    return;
  }
  const made = element("tr", undefined, "frame");
  const cell = element("td");
  cell.colSpan = line.children.length;
  made.append(cell);
  try {
    const { samples } = await request(`v1/samples?request_id=${encodeURIComponent(row.request_id)}`);
    if (samples.length) {
      const picture = element("img");
      picture.alt = `${t("Frame")}: ${row.label ?? ""}`;
      picture.src = `v1/samples/${samples[0].id}/image`;
      cell.append(picture);
    } else {
      cell.textContent = t("This frame was not kept. The setting samples decides which frames are kept.");
    }
  } catch (error) {
    cell.textContent = sentence(error.message);
  }
  line.after(made);
  asked.setAttribute("aria-expanded", "true");
}

function frameCell(row, line) {
  const cell = element("td");
  if (row.code || !row.request_id) return cell;
  const asked = button(t("Show"), () => showFrame(row, line, asked));
  asked.setAttribute("aria-expanded", "false");
  asked.setAttribute("aria-label", `${t("Frame")}: ${new Date(row.time).toLocaleTimeString()}`);
  cell.append(asked);
  return cell;
}

function showRows(rows, more) {
  const made = rows.map((row) => {
    const line = element("tr");
    const verdict = element("td", row.code ?? t(row.verdict ?? "none"));
    verdict.dataset.verdict = kindOf(row);
    const share = row.probability === null ? "" : row.probability.toFixed(3);
    line.append(
      element("td", new Date(row.time).toLocaleString()),
      verdict,
      ...[row.label ?? row.reason ?? "", share, row.camera ?? "", row.part ?? ""].map((text) =>
        element("td", text),
      ),
      element("td", row.total_ms === null ? "" : row.total_ms.toFixed(1)),
      frameCell(row, line),
    );
    return line;
  });
  if (more) byId("rows").append(...made);
  else byId("rows").replaceChildren(...made);
}

function showChart(rows) {
  const hours = new Map();
  for (const row of rows) {
    const hour = Math.floor(Date.parse(row.time) / 3.6e6);
    const counts = hours.get(hour) ?? {};
    counts[kindOf(row)] = (counts[kindOf(row)] ?? 0) + 1;
    hours.set(hour, counts);
  }
  const most = Math.max(1, ...[...hours.values()].map((each) => Object.values(each).reduce((a, b) => a + b, 0)));
  byId("chart").replaceChildren(
    ...[...hours.keys()].sort((a, b) => a - b).map((hour) => {
      const counts = hours.get(hour);
      const column = element("li");
      const bar = element("div", undefined, "stack");
      for (const kind of KINDS.filter((each) => counts[each])) {
        const part = element("span");
        part.dataset.verdict = kind;
        part.style.height = `${(counts[kind] / most) * 100}%`;
        bar.append(part);
      }
      const words = KINDS.filter((kind) => counts[kind]).map((kind) => `${t(kind)} ${counts[kind]}`);
      const time = new Date(hour * 3.6e6);
      column.title = `${time.toLocaleString()}: ${words.join(", ")}`;
      column.setAttribute("aria-label", column.title);
      column.append(bar, element("small", `${time.getHours()}:00`));
      return column;
    }),
  );
  show("chart-box", hours.size > 0);
}

async function loadChart(mine) {
  const words = filters();
  words.set("limit", 1000);
  const rows = [];
  do {
    const answer = await page(words);
    rows.push(...answer.rows);
    if (answer.next === null) break;
    words.set("cursor", answer.next);
  } while (rows.length < CHART_ROWS_MAX && mine === loads);
  if (mine === loads) showChart(rows);
}

async function load(more = false) {
  const mine = ++loads;
  const words = filters();
  words.set("limit", PAGE);
  if (more && next) words.set("cursor", next);
  try {
    const answer = await page(words);
    if (mine !== loads) return;
    next = answer.next;
    showRows(answer.rows, more);
    const empty = !more && answer.rows.length === 0;
    byId("journal-text").textContent = empty ? t("Nothing in the journal for these filters.") : "";
    show("journal-text", empty);
    show("journal-more", next !== null);
    if (!more) await loadChart(mine);
  } catch (error) {
    byId("journal-text").textContent = sentence(error.message);
    show("journal-text", true);
  }
}

// A link could send no key.
async function save() {
  const words = filters();
  words.set("format", "csv");
  const response = await ask(`v1/journal?${words}`);
  if (!response.ok) return;
  const link = element("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = "journal.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

export function start() {
  byId("journal-filter").addEventListener("change", () => load());
  byId("journal-filter").addEventListener("submit", (event) => {
    event.preventDefault();
    load();
  });
  byId("journal-more").addEventListener("click", () => load(true));
  byId("journal-save").addEventListener("click", save);
}

export function enter() {
  load();
}
