// Nodes. Text only ever becomes a text node: what a model wrote cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  done: "M5 12.5l4.5 4.5L19 7.5",
  again: "M19 12a7 7 0 1 1-2.1-5M19 4v4h-4",
  edit: "M5 19h3L18.5 8.5l-3-3L5 16zM13.5 7.5l3 3",
  more: "M5 12h12M12 6l6 6-6 6",
  clear: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  light:
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2" +
    "M5 5l1.5 1.5M17.5 17.5L19 19M5 19l1.5-1.5M17.5 6.5L19 5",
  dark: "M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5z",
};

export function find(id) {
  return document.getElementById(id);
}

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, path);
}

export function textButton(label, onclick, name = "") {
  return el("button", { type: "button", class: name, onclick }, label);
}

export function setIcon(button, name, label) {
  button.replaceChildren(icon(name));
  button.setAttribute("aria-label", label);
  button.title = label;
}

export function iconButton(name, label, onclick) {
  const button = el("button", { type: "button", class: "icon", onclick });
  setIcon(button, name, label);
  return button;
}

// A group of which one is chosen, moved through with the arrow keys.
export function radios(container, choices, onchoose) {
  const buttons = new Map();
  const choose = (value) => {
    for (const [other, button] of buttons) {
      button.setAttribute("aria-checked", String(other === value));
      button.tabIndex = other === value ? 0 : -1;
    }
    onchoose(value);
  };
  for (const [value, label] of choices) {
    const button = textButton(label, () => choose(value));
    button.setAttribute("role", "radio");
    buttons.set(value, button);
  }
  container.addEventListener("keydown", (event) => {
    moveFocus(event, [...buttons.values()], (button) => button.click());
  });
  container.append(...buttons.values());
  return choose;
}

export function moveFocus(event, nodes, onmove) {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  const at = nodes.indexOf(event.target);
  if (!step || at < 0) return;
  event.preventDefault();
  const next = nodes[(at + step + nodes.length) % nodes.length];
  onmove(next);
  next.focus();
}

export async function copyText(text) {
  // The clipboard is offered to secure origins only; a server in the next room is none.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function copyButton(text) {
  const button = iconButton("copy", "Copy", async () => {
    await copyText(text());
    setIcon(button, "done", "Copied");
    setTimeout(() => setIcon(button, "copy", "Copy"), 1500);
  });
  return button;
}

export function announce(text) {
  find("announcer").textContent = text;
}
