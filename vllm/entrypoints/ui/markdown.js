// As much Markdown as models write, made of nodes. A stream appends to what it has shown: only the
// block that is still growing is made anew.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const INLINE = new RegExp(
  [
    /(?<ticks>`+)(?<code>[^\n]+?)\k<ticks>(?!`)/,
    /\*\*(?<strong>[^\n]+?)\*\*/,
    /(?<![\w*])\*(?<em>[^\s*](?:[^*\n]*[^\s*])?)\*(?![\w*])/,
    /\[(?<label>[^\]\n]+)\]\((?<url>https?:\/\/[^\s)]+)\)/,
  ]
    .map((part) => part.source)
    .join("|"),
  "g",
);

export function inline(text, depth = 0) {
  if (depth > 3) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(inlineNode(match.groups, depth));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function inlineNode({ code, strong, em, label, url }, depth) {
  if (code) return el("code", {}, code.trim() || code);
  if (strong) return el("strong", {}, ...inline(strong, depth + 1));
  if (em) return el("em", {}, ...inline(em, depth + 1));
  return el("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, label);
}

export function codeBlock(text, language = "") {
  const code = el("code", {}, text);
  const copy = copyButton(() => code.textContent);
  const bar = el("div", { class: "code-bar" }, el("span", {}, language), copy);
  return el("div", { class: "code" }, bar, el("pre", { tabindex: "0" }, code));
}

export function blocks(text) {
  const lines = text.replace(/\n$/, "").split("\n");
  const nodes = [];
  for (let i = 0; i < lines.length; ) i = block(lines, i, nodes);
  return nodes;
}

// Appends the block that starts at a line; returns the line after it.
function block(lines, i, nodes) {
  const line = lines[i];
  if (!line.trim()) return i + 1;
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, i, fence, nodes);
  const heading = HEADING.exec(line);
  if (heading) {
    nodes.push(el(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2])));
    return i + 1;
  }
  if (RULE.test(line)) {
    nodes.push(el("hr"));
    return i + 1;
  }
  if (QUOTE.test(line)) return quoted(lines, i, nodes);
  if (ITEM.test(line)) return list(lines, i, nodes);
  return paragraph(lines, i, nodes);
}

function fenced(lines, i, fence, nodes) {
  const end = lines.findIndex((line, at) => at > i && closes(line, fence[1]));
  const last = end < 0 ? lines.length : end;
  nodes.push(codeBlock(lines.slice(i + 1, last).join("\n"), fence[2]));
  return last + 1;
}

function closes(line, marker) {
  const text = line.trim();
  return text.length >= marker.length && [...text].every((char) => char === marker[0]);
}

function quoted(lines, i, nodes) {
  const inner = [];
  for (; i < lines.length && QUOTE.test(lines[i]); i++) inner.push(QUOTE.exec(lines[i])[1]);
  nodes.push(el("blockquote", {}, el("p", {}, ...inline(inner.join("\n")))));
  return i;
}

function list(lines, i, nodes) {
  const open = []; // of each level: its indentation and its list
  for (let match; i < lines.length && (match = ITEM.exec(lines[i])); i++) {
    const [, space, , number, text] = match;
    while (open.length > 1 && space.length < open.at(-1).indent) open.pop();
    if (!open.length || (space.length > open.at(-1).indent + 1 && open.length < 8)) {
      const node = el(number ? "ol" : "ul", number && number !== "1" ? { start: number } : {});
      (open.at(-1)?.node.lastElementChild ?? { append: (n) => nodes.push(n) }).append(node);
      open.push({ indent: space.length, node });
    }
    open.at(-1).node.append(el("li", {}, ...inline(text)));
  }
  return i;
}

function paragraph(lines, i, nodes) {
  const text = [lines[i]];
  for (i++; i < lines.length && lines[i].trim() && !interrupts(lines[i]); i++) text.push(lines[i]);
  nodes.push(el("p", {}, ...inline(text.join("\n"))));
  return i;
}

function interrupts(line) {
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line);
}

// Where the blocks that can no longer change end.
function settled(text) {
  let cut = 0;
  let marker = null;
  for (let at = 0; ; ) {
    const end = text.indexOf("\n", at);
    if (end < 0) return cut;
    const line = text.slice(at, end);
    const fence = FENCE.exec(line);
    if (marker !== null) {
      if (closes(line, marker)) [marker, cut] = [null, end + 1];
    } else if (fence) [marker, cut] = [fence[1], at];
    else if (!line.trim()) cut = end + 1;
    at = end + 1;
  }
}

export class MarkdownStream {
  constructor(container) {
    this.container = container;
    this.tail = "";
    this.growing = [];
  }

  push(text) {
    this.tail += text;
    const cut = settled(this.tail);
    if (cut > 0) {
      this.replace(blocks(this.tail.slice(0, cut)));
      this.growing = [];
      this.tail = this.tail.slice(cut);
    }
    if (!this.extendCode()) this.replace(blocks(this.tail));
  }

  replace(nodes) {
    for (const node of this.growing) node.remove();
    this.growing = nodes;
    this.container.append(...nodes);
  }

  // Long code grows by what is new alone.
  extendCode() {
    const start = this.tail.indexOf("\n") + 1;
    if (!start || !FENCE.test(this.tail.slice(0, start - 1)) || !this.growing.length) return false;
    const shown = this.growing[0].querySelector("code")?.firstChild;
    const code = this.tail.slice(start);
    if (!shown || !code.startsWith(shown.data)) return false;
    shown.appendData(code.slice(shown.length));
    return true;
  }
}
