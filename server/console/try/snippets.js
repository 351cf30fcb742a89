// The tab Try: the commands that do the same as the page.

import { byId } from "../dom.js";

export function showSnippets(address) {
  const quoted = address.includes("?") ? `'${address}'` : address;
  byId("address").textContent = quoted;
  byId("python").textContent = [
    "import requests",
    "",
    'with open("frame.jpg", "rb") as file:',
    "    answer = requests.post(",
    `        ${JSON.stringify(address)},`,
    '        files={"file": file},',
    '        headers={"X-API-Key": "THE-KEY"},  # if the server asks for keys',
    "        timeout=10,",
    "    ).json()",
    'print(answer["verdict"], answer["predictions"][:1])',
  ].join("\n");
}
