// Shows openapi.json: each operation with the fields of its request, and the types that these name.

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

const nameOf = (schema) => schema.$ref.split("/").at(-1);

function link(name, named) {
  named.add(name);
  const made = element("a", name);
  made.href = `#${name}`;
  return made;
}

/** The kind of a field, as text and links to types. */
function kindOf(schema, named) {
  if (schema.$ref) return [link(nameOf(schema), named)];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  const choices = (schema.anyOf ?? schema.oneOf)?.filter((each) => each.type !== "null");
  if (choices) return choices.flatMap((each, at) => [...(at ? [" | "] : []), ...kindOf(each, named)]);
  if (schema.type === "array") return ["list of ", ...kindOf(schema.items ?? {}, named)];
  return [(schema.type ?? "anything") + limits(schema)];
}

function limits({ minimum, exclusiveMinimum, maximum, maxLength }) {
  const low = minimum ?? exclusiveMinimum;
  if (low !== undefined && maximum !== undefined) return ` ${low} … ${maximum}`;
  return maxLength === undefined ? "" : `, at most ${maxLength} characters`;
}

function fieldsOf(schema, named) {
  const table = element("table");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const kind = element("td", "", ...kindOf(field, named), schema.required?.includes(name) ? ", required" : "");
    kind.className = "kind";
    table.append(element("tr", "", element("td", "", element("code", name)), kind, element("td", field.description)));
  }
  return table;
}

const api = await (await fetch("openapi.json")).json();
const main = document.querySelector("#operations");
const named = new Set();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const section = element("section", "", element("h2", "", element("code", `${method.toUpperCase()} ${path}`)));
    section.append(element("p", operation.summary));
    const body = operation.requestBody?.content["application/json"].schema;
    if (body) section.append(fieldsOf(api.components.schemas[nameOf(body)], named));
    main.append(section);
  }
}
for (const name of named) { // A type names others, which join the set while it is read.
  const section = element("section", "", element("h2", name), fieldsOf(api.components.schemas[name], named));
  section.id = name;
  main.append(section);
}
main.ariaBusy = "false";
