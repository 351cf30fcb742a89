// What the pages' scripts share to read and write their elements.

export const byId = (id) => document.getElementById(id);

export function show(id, on) {
  byId(id).hidden = !on;
}

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Asks the person in plain words before something changes. more: a promise of further words, which
// come while the question is there.
export function sure(question, more = null) {
  const dialog = byId("sure");
  byId("sure-text").textContent = question;
  byId("sure-more").textContent = "";
  more?.then((text) => {
    if (byId("sure-text").textContent === question) byId("sure-more").textContent = text;
  });
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// Names keep their letters: words with a sign or a digit, those before a colon, and `name`.
const NAMED = /^(\S*[\d_./-]|\S+:)/;

export function sentence(text, name = "") {
  const isNamed = NAMED.test(text) || (name && text.startsWith(`${name} `));
  const made = isNamed ? text : text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(made) ? made : `${made}.`;
}

// Adds `text` to `to`, with what is between backticks as code.
export function addText(to, text) {
  text.split("`").forEach((part, number) => to.append(number % 2 ? element("code", part) : part));
  return to;
}

export function button(text, act, className) {
  const made = element("button", text, className);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}
