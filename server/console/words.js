// The languages of the console: English is the key, Chinese the other. What the server says of an
// error stays as the server says it.

const NAME = "lineside-language";

function stored() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null; // A browser that may store nothing for this site.
  }
}

export function language() {
  return stored() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
}

export function setLanguage(name) {
  try {
    localStorage.setItem(NAME, name);
  } catch {
    // Then the browser's language counts.
  }
}

const chinese = language() === "zh";
// Loaded only by who reads them.
const ZH = chinese ? (await import("./words-zh.js")).default : {};

export function t(text) {
  return ZH[text] ?? text;
}

// Translates the elements with the attribute data-t: their text, or the attributes that it names.
export function translate(root) {
  document.documentElement.lang = chinese ? "zh" : "en";
  for (const each of root.querySelectorAll("[data-t]")) {
    for (const name of each.dataset.t ? each.dataset.t.split(" ") : [""]) {
      if (name) each.setAttribute(name, t(each.getAttribute(name)));
      else each.textContent = t(each.textContent.trim());
    }
  }
}
