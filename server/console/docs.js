// The page at /docs: openapi.json made readable.

import { byId, element } from "./dom.js";

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
  if (schema.prefixItems) return `[${schema.prefixItems.map(brief).join(", ")}]`;
  if (schema.type === "array") return `[${brief(schema.items)}, …]`;
  if (schema.type === "object" && schema.additionalProperties) {
    return `{name: ${brief(schema.additionalProperties)}}`;
  }
  const bounds = [];
  if ("minimum" in schema) bounds.push(`from ${schema.minimum}`);
  if ("exclusiveMinimum" in schema) bounds.push(`above ${schema.exclusiveMinimum}`);
  if ("maximum" in schema) bounds.push(`to ${schema.maximum}`);
  if ("maxLength" in schema) bounds.push(`at most ${schema.maxLength} characters`);
  const kind = schema.format === "binary" ? "file" : schema.type;
  return bounds.length ? `${kind}, ${bounds.join(" ")}` : String(kind);
}

function table(rows) {
  const made = element("table");
  for (const cells of rows) {
    const row = made.insertRow();
    for (const cell of cells) row.append(element("td", cell));
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
    if (target.description) box.append(element("p", target.description, "what"));
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

function operation(method, path, described, schemas) {
  const box = element("details");
  const head = element("summary");
  head.append(
    element("span", method.toUpperCase(), "method"),
    element("span", path, "path"),
    element("span", described.summary, "what"),
  );
  box.append(head);
  if (described.parameters.length) {
    box.append(element("h3", "In the path and the query"));
    box.append(table(described.parameters.map((p) => [p.name, p.in, brief(p.schema)])));
  }
  box.append(contents("Request", described.requestBody?.content, schemas));
  for (const [status, { description, content }] of Object.entries(described.responses)) {
    const heading = `${status} ${description}`;
    if (status === "200") box.append(contents(heading, content, schemas));
    else box.append(element("p", `${heading}: ${brief(Object.values(content)[0].schema)}`));
  }
  return box;
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
  byId("docs").replaceChildren(...sections.values());
}

try {
  const response = await fetch("openapi.json");
  render(await response.json());
} catch {
  const sentence = "The description can't be read: the server does not answer.";
  byId("docs").replaceChildren(element("p", sentence, "error"));
}
