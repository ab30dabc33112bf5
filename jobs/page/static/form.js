// A form made from the JSON Schema of a spec. What is left empty keeps its default and does not enter the spec.

import { h } from "./dom.js";

const OPEN = new Set(["recipe", "method", "replicas", "training"]);
const LEFT_OUT = new Set(["spec_version"]);

export const fieldId = (path) => `field-${path.replaceAll(".", "-")}`;
export const errorId = (path) => `wrong-${path.replaceAll(".", "-")}`;

/** Draws into `root`; `changed(spec)` is called with the whole spec after every edit. */
export class Form {
  constructor(root, schema, changed) {
    Object.assign(this, { root, schema, changed, spec: {} });
  }

  show(spec) {
    this.spec = spec;
    const opened = new Set([...this.root.querySelectorAll("details[open]")].map((group) => group.dataset.path));
    const first = this.root.children.length === 0;
    const focus = this.root.contains(document.activeElement) ? document.activeElement.id : null;
    const plain = h("div", { class: "fields" });
    const groups = [];
    for (const [name, schema] of Object.entries(this.schema.properties)) {
      if (LEFT_OUT.has(name)) continue;
      if (this.isGroup(schema)) groups.push(this.group(name, schema, first ? OPEN.has(name) : opened.has(name)));
      else plain.append(this.field(name, name, schema));
    }
    this.root.replaceChildren(plain, ...groups);
    if (focus) document.getElementById(focus)?.focus();
  }

  resolve(schema) {
    return schema.$ref ? { ...this.schema.$defs[schema.$ref.split("/").at(-1)], default: schema.default } : schema;
  }

  isGroup(schema) {
    const known = this.resolve(schema);
    return Boolean(known.properties || known.discriminator);
  }

  group(path, schema, open) {
    const known = this.resolve(schema);
    const title = path.split(".").at(-1).replaceAll("_", " ");
    return h("details", { class: "group", open, "data-path": path }, h("summary", {}, title), this.wrong(path), this.inside(path, known));
  }

  /** The fields of an object, or of that member of a union which its `kind` names. */
  inside(path, schema) {
    const box = h("div", { class: "fields" });
    let known = schema;
    if (schema.discriminator) {
      const kinds = Object.entries(schema.discriminator.mapping);
      const kind = this.get(path)?.kind ?? schema.default?.kind;
      box.append(this.choice(`${path}.kind`, "kind", kinds.map(([name]) => name), kind, "", (value) => {
        this.set(path, value === schema.default?.kind ? undefined : { kind: value });
        this.show(this.spec);
      }));
      const reference = schema.discriminator.mapping[kind];
      if (reference === undefined) return box;
      known = this.resolve({ $ref: reference });
    }
    for (const [name, part] of Object.entries(known.properties ?? {})) {
      if (name === "kind") continue;
      // A member of a union is told by its kind, so what the union's default says of a field holds for that kind only.
      const inherited = schema.default?.kind === undefined || schema.default.kind === this.kind(path, schema) ? schema.default?.[name] : undefined;
      const given = inherited === undefined ? part : { ...part, default: inherited };
      box.append(this.isGroup(given) ? h("fieldset", {}, h("legend", {}, name.replaceAll("_", " ")), this.wrong(`${path}.${name}`), this.inside(`${path}.${name}`, this.resolve(given))) : this.field(`${path}.${name}`, name, given));
    }
    return box;
  }

  kind(path, schema) {
    return this.get(path)?.kind ?? schema.default?.kind;
  }

  field(path, name, schema) {
    const type = schema.anyOf?.find((part) => part.type !== "null") ?? schema;
    const description = schema.description ?? "";
    if (type.enum) return this.choice(path, name, type.enum, this.get(path) ?? schema.default, description, (value) => this.edit(path, value === schema.default ? undefined : value));
    if (type.type === "boolean") return this.check(path, name, schema, description);
    const isJson = !["string", "integer", "number"].includes(type.type);
    const value = this.get(path);
    const shown = value === undefined ? "" : isJson ? JSON.stringify(value) : String(value);
    const fallback = schema.default === null || schema.default === undefined ? "" : isJson ? JSON.stringify(schema.default) : String(schema.default);
    const input = h("input", {
      id: fieldId(path), value: shown, placeholder: fallback, autocomplete: "off", spellcheck: "false",
      inputmode: ["integer", "number"].includes(type.type) ? "decimal" : null, "aria-describedby": errorId(path),
      oninput: (event) => this.edit(path, read(event.target.value.trim(), type.type)),
    });
    return this.labelled(path, name, description, input);
  }

  check(path, name, schema, description) {
    const input = h("input", { id: fieldId(path), type: "checkbox", "aria-describedby": errorId(path), onchange: (event) => this.edit(path, event.target.checked === schema.default ? undefined : event.target.checked) });
    input.checked = this.get(path) ?? schema.default ?? false;
    return h("div", { class: "field" }, h("label", { class: "check", title: description }, input, ` ${name.replaceAll("_", " ")}`), this.wrong(path));
  }

  choice(path, name, values, now, description, changed) {
    const known = values.includes(now) ? values : [...values, now];
    const select = h("select", { id: fieldId(path), "aria-describedby": errorId(path), onchange: (event) => changed(event.target.value) },
      ...known.map((value) => h("option", { value, selected: value === now }, String(value).replaceAll("_", " "))));
    return this.labelled(path, name, description, select);
  }

  labelled(path, name, description, input) {
    if (description) input.setAttribute("aria-describedby", `${errorId(path)} ${fieldId(path)}-help`);
    const help = description ? h("p", { class: "help", id: `${fieldId(path)}-help` }, description.replaceAll("`", "")) : null;
    return h("div", { class: "field" }, h("label", { for: fieldId(path) }, name.replaceAll("_", " ")), input, help, this.wrong(path));
  }

  wrong(path) {
    return h("p", { class: "wrong", id: errorId(path) });
  }

  edit(path, value) {
    this.set(path, value);
    this.changed(this.spec);
  }

  get(path) {
    return path.split(".").reduce((value, key) => value?.[key], this.spec);
  }

  /** Puts a value where it belongs; `undefined` takes it out, and with it what is empty then. */
  set(path, value) {
    const keys = path.split(".");
    const parents = [this.spec];
    for (const [i, key] of keys.slice(0, -1).entries()) {
      const above = parents.at(-1);
      if (above[key] === undefined) {
        if (value === undefined) return;
        // A member of a union is named by its kind, also by who changes nothing but another key.
        const kind = document.getElementById(fieldId(`${keys.slice(0, i + 1).join(".")}.kind`))?.value;
        above[key] = kind === undefined ? {} : { kind };
      }
      parents.push(above[key]);
    }
    if (value === undefined) delete parents.at(-1)[keys.at(-1)];
    else parents.at(-1)[keys.at(-1)] = value;
    for (let i = keys.length - 2; i >= 0; i -= 1) if (Object.keys(parents[i + 1]).length === 0) delete parents[i][keys[i]];
    this.changed(this.spec);
  }
}

/** What was typed, as JSON has it; what is not of the type is sent as it stands, and the service says what is right. */
function read(text, type) {
  if (text === "") return undefined;
  if (type === "string") return text;
  if (["integer", "number"].includes(type)) return Number.isFinite(Number(text)) ? Number(text) : text;
  try { return JSON.parse(text); } catch { return text; }
}
