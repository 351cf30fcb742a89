// The page at /docs: openapi.json made readable.

import { addText, byId, element } from "./dom.js";

function nameOf(ref) {
  return ref.split("/").pop();
}

// A schema as one line of text.
function brief(schema) {
  if (!schema || Object.keys(schema).length === 0) return "any";
  if (schema.$ref) return nameOf(schema.$ref);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(brief).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.prefixItems) return `[${schema.prefixItems.map(brief).join(", ")}]`;
  if (schema.type === "array") return `[${brief(schema.items)}, …]`;
  if (schema.type === "object" && schema.additionalProperties) {
    return `{name: ${brief(schema.additionalProperties)}}`;
  }
  if (schema.type === undefined) return "any";
  const bounds = [];
  if ("minimum" in schema) bounds.push(`from ${schema.minimum}`);
  if ("exclusiveMinimum" in schema) bounds.push(`above ${schema.exclusiveMinimum}`);
  if ("exclusiveMaximum" in schema) bounds.push(`below ${schema.exclusiveMaximum}`);
  if ("maximum" in schema) bounds.push(`to ${schema.maximum}`);
  if ("maxLength" in schema) bounds.push(`at most ${schema.maxLength} characters`);
  const kind = schema.format === "binary" ? "file" : [schema.type].flat().join(" or ");
  return bounds.length ? `${kind}, ${bounds.join(" ")}` : kind;
}

// A paragraph of text in which backticks mark code.
function prose(text, className) {
  return addText(element("p", undefined, className), text);
}

function table(rows) {
  const made = element("table");
  for (const cells of rows) {
    const row = made.insertRow();
    for (const cell of cells) row.append(addText(element("td"), cell));
  }
  return made;
}

function propertyRows(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, property]) => [
    name,
    brief(property),
    required.has(name) ? "always" : "",
  ]);
}

// A schema as its description and a table of its fields, where it has some.
function spelled(schema, schemas) {
  const box = element("div");
  for (const choice of schema.anyOf ?? [schema]) {
    const target = choice.$ref ? schemas[nameOf(choice.$ref)] : choice;
    if (choice.$ref) box.append(element("h3", nameOf(choice.$ref)));
    if (target.description) box.append(prose(target.description, "what"));
    if (target.properties) box.append(table(propertyRows(target)));
    else box.append(element("p", brief(target)));
  }
  return box;
}

function contents(heading, content, schemas) {
  const box = element("div");
  for (const [media, { schema, example }] of Object.entries(content ?? {})) {
    box.append(element("h3", `${heading}: ${media}`), spelled(schema, schemas));
    if (example) box.append(element("pre", JSON.stringify(example)));
  }
  return box;
}

// What an answer holds, as text; nothing if it has no body.
function bodies(content) {
  return Object.values(content ?? {}).slice(0, 1).map(({ schema }) => brief(schema));
}

function operation(method, path, described, schemas) {
  const box = element("details");
  const head = element("summary");
  head.append(
    element("span", method.toUpperCase(), "method"),
    element("span", path, "path"),
    element("span", described.summary, "what"),
  );
  box.append(head);
  if (described.security.length) box.append(element("p", "Asks for a key, if the server does.", "what"));
  if (described.parameters.length) {
    box.append(element("h3", "In the path and the query"));
    box.append(table(described.parameters.map((p) => [p.name, p.in, brief(p.schema)])));
  }
  box.append(contents("Request", described.requestBody?.content, schemas));
  for (const [status, { description, content }] of Object.entries(described.responses)) {
    const heading = `${status} ${description}`;
    if (status === "200") box.append(contents(heading, content, schemas));
    else box.append(element("p", [heading, ...bodies(content)].join(": ")));
  }
  return box;
}

// How a client signs in, as the description has it.
function signingIn(schemes) {
  const section = element("section", undefined, "panel");
  section.append(element("h3", "Signing in"));
  const rows = Object.values(schemes).map((scheme) => [
    scheme.in === "header" ? `${scheme.name}: KEY` : "Authorization: Bearer KEY",
    scheme.description,
  ]);
  section.append(table(rows));
  return section;
}

function render({ paths, components }) {
  const sections = new Map();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, described] of Object.entries(methods)) {
      const [tag] = described.tags;
      if (!sections.has(tag)) {
        const section = element("section", undefined, "panel");
        section.append(element("h2", tag));
        sections.set(tag, section);
      }
      sections.get(tag).append(operation(method, path, described, components.schemas));
    }
  }
  byId("docs").replaceChildren(signingIn(components.securitySchemes), ...sections.values());
}

try {
  const response = await fetch("openapi.json");
  render(await response.json());
} catch {
  const sentence = "The description can't be read: the server does not answer.";
  byId("docs").replaceChildren(element("p", sentence, "error"));
}
