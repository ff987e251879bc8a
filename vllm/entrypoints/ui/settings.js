// What a request carries besides the words. A field that is empty is not sent, and the server's
// default holds.

import { el, find, radios, textButton } from "./dom.js";
import { stored } from "./store.js";

// name, label, lowest, highest, step, the default of a server that says nothing else
const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, 1],
  ["top_p", "Top p", 0, 1, 0.01, 1],
  ["top_k", "Top k", 0, 200, 1, 0],
  ["min_p", "Min p", 0, 1, 0.01, 0],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, 0],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, 0],
  ["repetition_penalty", "Repetition penalty", 0.5, 2, 0.05, 1],
];
const FORMATS = [
  ["text", "Text"],
  ["json_object", "JSON"],
  ["json_schema", "JSON schema"],
];
const EXAMPLE_SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
};

export class Settings {
  constructor(onchange) {
    this.values = {};
    this.inputs = new Map();
    this.onchange = onchange;
    this.chooseFormat = null;
    this.panel = find("settings");
    this.build();
    this.restore({ ...stored.settings.get() });
  }

  build() {
    this.system = this.area("system", "System prompt", "How the model should behave", 3);
    this.schema = this.area("schema", "Schema", "", 8);
    this.schema.input.classList.add("mono");
    this.schema.input.spellcheck = false;
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
    this.schema.node.append(this.problem);
    const label = "Answer format";
    const group = { class: "segments", role: "radiogroup", "aria-label": label, id: "formats" };
    const formats = el("div", group);
    this.chooseFormat = radios(formats, FORMATS, (format) => {
      if (format === "json_schema" && !this.schema.input.value.trim()) {
        this.schema.input.value = JSON.stringify(EXAMPLE_SCHEMA, null, 2);
        this.values.schema = this.schema.input.value;
      }
      this.change("format", format);
      this.schema.node.hidden = format !== "json_schema";
    });
    this.panel.append(
      this.system.node,
      el("div", { class: "field" }, el("span", { class: "label" }, label), formats),
      this.schema.node,
      el("h2", {}, "Sampling"),
      ...NUMBERS.map((row) => this.slider(...row)),
      el(
        "div",
        { class: "pair" },
        this.count("max_tokens", "Max tokens", 1),
        this.count("seed", "Seed", 0),
      ),
      this.area("stop", "Stop texts, one per line", "", 2).node,
      el("p", { class: "row" }, textButton("Back to defaults", () => this.reset())),
    );
  }

  area(name, label, placeholder, rows) {
    const input = el("textarea", { id: `set-${name}`, rows, placeholder });
    input.addEventListener("input", () => this.change(name, input.value));
    this.inputs.set(name, input);
    const node = el("div", { class: "field" }, el("label", { for: input.id }, label), input);
    return { node, input };
  }

  count(name, label, low) {
    const id = `set-${name}`;
    const input = el("input", { id, type: "number", min: low, step: 1, placeholder: "default" });
    input.addEventListener("input", () => this.change(name, input.value));
    this.inputs.set(name, input);
    return el("div", { class: "field" }, el("label", { for: input.id }, label), input);
  }

  slider(name, label, min, max, step, initial) {
    const id = `set-${name}`;
    const number = el("input", { id, type: "number", min, max, step: "any", placeholder: initial });
    const range = el("input", { type: "range", min, max, step, "aria-label": `${label}, slider` });
    const show = () => {
      range.value = number.value === "" ? number.placeholder : number.value;
      node.classList.toggle("unset", number.value === "");
    };
    number.addEventListener("input", () => (show(), this.change(name, number.value)));
    range.addEventListener("input", () => {
      number.value = range.value;
      show();
      this.change(name, number.value);
    });
    const title = el("label", { for: id }, label);
    const node = el("div", { class: "slider unset" }, title, number, range);
    number.show = show;
    show();
    this.inputs.set(name, number);
    return node;
  }

  // What the server uses for fields that are not sent.
  showDefaults(defaults) {
    for (const [name] of NUMBERS) {
      const input = this.inputs.get(name);
      if (typeof defaults[name] === "number") input.placeholder = defaults[name];
      input.show();
    }
  }

  restore(values) {
    this.values = values;
    for (const [name, input] of this.inputs) {
      input.value = values[name] ?? "";
      input.show?.();
    }
    this.chooseFormat(values.format ?? "text");
  }

  reset() {
    this.restore({ system: this.values.system ?? "" });
  }

  change(name, value) {
    this.values[name] = value;
    stored.settings.set(this.values);
    this.checkSchema();
    this.onchange(this);
  }

  get wantsJson() {
    return (this.values.format ?? "text") !== "text";
  }

  get systemPrompt() {
    return (this.values.system ?? "").trim();
  }

  checkSchema() {
    const input = this.schema.input;
    this.problem.hidden = true;
    input.removeAttribute("aria-invalid");
    if (this.values.format !== "json_schema") return null;
    try {
      const schema = JSON.parse(input.value);
      if (Object.prototype.toString.call(schema) === "[object Object]") return schema;
      throw new Error("it must be an object");
    } catch (error) {
      this.problem.textContent = `Not a JSON schema: ${error.message}`;
      this.problem.hidden = false;
      input.setAttribute("aria-invalid", "true");
      return null;
    }
  }

  // The first thing that cannot be sent, in words; null when all can.
  complaint() {
    if (!this.problem.hidden) return `${this.problem.textContent}. See Settings.`;
    for (const [name, input] of this.inputs) {
      if (!input.validity.valid) return `${name}: ${input.validationMessage}`;
    }
    return null;
  }

  fields() {
    const fields = {};
    for (const [name, input] of this.inputs) {
      if (input.type === "number" && input.value !== "") fields[name] = Number(input.value);
    }
    const stop = (this.values.stop ?? "").split("\n").filter((line) => line);
    if (stop.length) fields.stop = stop;
    if (this.values.format === "json_object") fields.response_format = { type: "json_object" };
    if (this.values.format === "json_schema") {
      const json_schema = { name: "answer", schema: this.checkSchema(), strict: true };
      fields.response_format = { type: "json_schema", json_schema };
    }
    return fields;
  }
}
