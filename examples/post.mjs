// Post one JPEG, with Node 18 or later: LINESIDE_KEY=ls_... node post.mjs http://DEVICE:8080 photo.jpg
import { readFile } from "node:fs/promises";

const [url, photo] = process.argv.slice(2);
const response = await fetch(`${url}/v1/recognize?camera=st4`, {
  method: "POST",
  headers: { "Content-Type": "image/jpeg", "X-API-Key": process.env.LINESIDE_KEY ?? "" },
  body: await readFile(photo),
  signal: AbortSignal.timeout(10_000),
});
const answer = await response.json();
if (!response.ok) throw new Error(`${response.status}: ${answer.error.message}`);
for (const each of answer.predictions) console.log(each.label, each.probability);
console.log("verdict:", answer.verdict);
