// One turn of the conversation on the page.

import { copyButton, el, iconButton, textButton } from "./dom.js";
import { MarkdownStream, codeBlock } from "./markdown.js";
import { TokenView } from "./tokens.js";

const ENDS = { length: "cut at the limit of tokens", abort: "stopped", tool_calls: "tool call" };

export class UserView {
  constructor(turn, actions) {
    const edit = iconButton("edit", "Edit", actions.edit);
    edit.classList.add("only-last");
    this.node = el(
      "article",
      { class: "turn user", "aria-label": "You" },
      el("div", { class: "body plain" }, turn.content),
      el("footer", {}, el("span", { class: "spring" }), edit, copyButton(() => turn.content)),
    );
  }
}

export class AnswerView {
  // `turn` is the conversation's; the view reads it and never writes to it.
  constructor(turn, actions) {
    this.turn = turn;
    this.body = el("div", { class: "body" });
    this.figures = el("span", { class: "figures" });
    this.thought = null;
    this.tokens = new TokenView();
    this.switch = textButton("Tokens", () => this.showTokens(!this.tokensShown), "chip");
    const spring = el("span", { class: "spring" });
    const footer = el("footer", {}, this.figures, spring, this.switch, ...this.buttons(actions));
    this.node = el("article", { class: "turn answer", "aria-label": "Model" }, this.body, footer);
    this.pending = { content: "", reasoning: "" };
    this.frame = 0;
    this.start();
  }

  buttons({ again, edit, more }) {
    const made = [copyButton(() => this.turn.content)];
    if (this.turn.mode === "completion") {
      made.push(iconButton("edit", "Edit the text", edit));
      made.push(iconButton("more", "Continue the text", more));
    }
    made.push(iconButton("again", "Generate again", again));
    for (const button of made.slice(1)) button.classList.add("only-last");
    return made;
  }

  start() {
    this.text = el("div", { class: this.isPlain ? "text plain" : "text" });
    const { mode, prompt } = this.turn;
    if (mode === "completion") this.text.append(el("span", { class: "prompt" }, prompt));
    this.body.append(this.text, this.tokens.node);
    this.grown = this.isPlain ? document.createTextNode("") : null;
    if (this.isPlain) this.text.append(this.grown);
    else this.markdown = new MarkdownStream(this.text);
    this.showTokens(this.turn.wantsTokens);
  }

  get isPlain() {
    return this.turn.mode === "completion" || this.turn.isJson;
  }

  push(content, reasoning, tokens) {
    this.pending.content += content;
    this.pending.reasoning += reasoning;
    if (tokens.length) this.tokens.push(tokens);
    // Frames are not drawn for a hidden page; what has come is shown when it is looked at.
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { content, reasoning } = this.pending;
    this.pending = { content: "", reasoning: "" };
    if (reasoning) this.think(reasoning);
    if (content) {
      if (this.thought?.open && !this.thought.touched) this.thought.open = false;
      if (this.grown) this.grown.appendData(content);
      else this.markdown.push(content);
    }
    this.ondraw?.();
  }

  think(more) {
    if (!this.thought) {
      const summary = el("summary", { onclick: () => (this.thought.touched = true) }, "Reasoning");
      this.thoughtText = document.createTextNode("");
      const text = el("div", { class: "plain" }, this.thoughtText);
      this.thought = el("details", { class: "reasoning" }, summary, text);
      this.body.prepend(this.thought);
    }
    this.thoughtText.appendData(more);
  }

  // All there is of a turn that came earlier.
  fill() {
    this.push(this.turn.content, this.turn.reasoning ?? "", this.turn.tokens ?? []);
    this.finish();
  }

  finish() {
    this.flush();
    this.showTokens(this.turn.wantsTokens);
    if (this.turn.isJson && !this.turn.error) this.prettify();
    this.figures.textContent = figuresOf(this.turn);
  }

  prettify() {
    const value = parsed(this.turn.content);
    if (value === undefined) return;
    this.text.replaceChildren(codeBlock(JSON.stringify(value, null, 2), "json"));
  }

  showTokens(wanted) {
    const has = this.tokens.tokens.length > 0;
    this.tokensShown = wanted && (has || !this.turn.finish);
    this.switch.hidden = !has;
    this.switch.setAttribute("aria-pressed", String(this.tokensShown));
    this.body.classList.toggle("as-tokens", Boolean(this.tokensShown));
  }

  fail(card) {
    this.flush();
    this.body.append(card);
    this.figures.textContent = figuresOf(this.turn);
  }
}

export function figuresOf({ figures, finish, content, isJson }) {
  const parts = [];
  if (figures) {
    const { tokens, first_s, rate } = figures;
    parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (first_s !== null) parts.push(`first after ${duration(first_s)}`);
    if (rate !== null) parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
  }
  if (ENDS[finish]) parts.push(ENDS[finish]);
  if (isJson && finish && content && parsed(content) === undefined) parts.push("not complete JSON");
  return parts.join(" · ");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function duration(seconds) {
  if (seconds < 0.01) return `${Number((seconds * 1000).toPrecision(2))} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${Number(seconds.toPrecision(3))} s`;
}
