// Requests of the tabs: the answer as JSON, or the server's sentence as an error.

import { byId, sentence, show } from "./dom.js";
import { ask } from "./key.js";

export async function request(url, options = {}, wanted = () => true) {
  const response = await ask(url, options, wanted);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? String(response.status));
  return answer;
}

export function post(url, body) {
  const headers = { "Content-Type": "application/json" };
  return request(url, { method: "POST", headers, body: JSON.stringify(body) });
}

export const remove = (url) => request(url, { method: "DELETE" });

// The name of a part of an address.
export const name = encodeURIComponent;

// Returns what shows a sentence in the note `id`; nothing hides it.
export function noteAt(id) {
  return (text) => {
    byId(id).textContent = text ? sentence(text) : "";
    show(id, Boolean(text));
  };
}

// Runs `act`, and shows what went wrong, if it did.
export async function tell(say, act) {
  try {
    await act();
    return true;
  } catch (error) {
    say(error.message);
    return false;
  }
}
