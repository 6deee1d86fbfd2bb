// Shows openapi.json: each operation, and the fields of its request.

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

const resolved = (api, schema) =>
  schema.$ref ? api.components.schemas[schema.$ref.split("/").at(-1)] : schema;

function kindOf(api, schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.filter((each) => each.type !== "null").map((each) => kindOf(api, each)).join(" | ");
  if (schema.type === "array") return `list of ${kindOf(api, schema.items ?? {})}`;
  return schema.type ?? "anything";
}

function fieldsOf(api, schema) {
  const table = element("table");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const needed = schema.required?.includes(name) ? ", required" : "";
    const kind = element("td", kindOf(api, field) + needed);
    kind.className = "kind";
    table.append(element("tr", "", element("td", "", element("code", name)), kind, element("td", field.description)));
  }
  return table;
}

const api = await (await fetch("openapi.json")).json();
const main = document.querySelector("#operations");
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const section = element("section", "", element("h2", "", element("code", `${method.toUpperCase()} ${path}`)));
    section.append(element("p", operation.summary));
    const body = operation.requestBody?.content["application/json"].schema;
    if (body) section.append(fieldsOf(api, resolved(api, body)));
    main.append(section);
  }
}
main.ariaBusy = "false";
