// Set up: where verdicts go, and a message that tests the way there.

import { name as part, request, tell } from "../api.js";
import { button, byId, element } from "../dom.js";
import { t } from "../words.js";

const TESTABLE = ["mqtt", "webhook"];
const EMPTY = "No output is set. Verdicts are only in the answers.";

const rows = new Map();
const tests = new Map(); // By output: when a test was sent, Date.now().

let say = () => {};

async function test(name) {
  await tell(say, async () => {
    await request(`v1/outputs/${part(name)}/test`, { method: "POST" });
    tests.set(name, Date.now());
    say("");
    await refresh();
  });
}

function words(output) {
  const list = [output.kind, output.connected ? t("connected") : t("not connected")];
  if (output.waiting) list.push(`${output.waiting} ${t("waiting")}`);
  if (output.last_error) list.push(output.last_error);
  const at = output.last_delivered_at;
  if (at) list.push(`${t("last delivered")} ${new Date(at).toLocaleTimeString()}`);
  const sent = tests.get(output.name);
  if (sent) list.push(t("a test was sent, with the error TEST and no verdict"));
  if (sent && at && Date.parse(at) > sent - 1000 && !output.waiting) list.push(t("the test was taken"));
  return list.join(", ");
}

function makeRow(output) {
  const row = element("li");
  const text = element("span");
  row.append(element("b", output.name), text);
  if (TESTABLE.includes(output.kind)) {
    row.append(button(t("Send a test message"), () => test(output.name)));
  } else {
    row.append(
      element("p", t("It takes no test: a PLC takes whatever comes for the result of a part. Look at its heartbeat."), "about"),
    );
  }
  return { row, text };
}

export async function refresh() {
  const { outputs } = await request("v1/outputs");
  const box = byId("setup-outputs");
  for (const output of outputs) {
    if (!rows.has(output.name)) {
      rows.set(output.name, makeRow(output));
      box.append(rows.get(output.name).row);
    }
    const { row, text } = rows.get(output.name);
    row.dataset.state = output.connected ? "ready" : "down";
    text.textContent = ` ${words(output)} `;
  }
  if (outputs.length === 0) box.replaceChildren(element("li", t(EMPTY), "empty"));
}

export function start(sayAt) {
  say = sayAt;
}
