// An answer as its tokens, tinted by how unsure the model was, each with what else could have come.

import { el, find, moveFocus } from "./dom.js";

// [text, log-probability, [[text, log-probability], …]] per token, from either endpoint's shape.
export function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((token) => [
      token.token,
      token.logprob,
      token.top_logprobs.map((other) => [other.token, other.logprob]),
    ]);
  }
  return logprobs.tokens.map((text, i) => [
    text,
    logprobs.token_logprobs[i],
    Object.entries(logprobs.top_logprobs?.[i] ?? {}),
  ]);
}

export function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
}

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share >= 99.95) return "100%";
  return share < 0.1 ? "<0.1%" : `${share.toFixed(1)}%`;
}

export class TokenView {
  constructor() {
    this.tokens = [];
    // One stop for the tab key; the arrows move within.
    this.node = el("div", {
      class: "tokens",
      role: "group",
      "aria-label": "Tokens; arrow keys move between them",
      onpointerover: (event) => this.point(event.target),
      onpointerleave: hideAlternatives,
      onfocusin: (event) => this.point(event.target),
      onfocusout: hideAlternatives,
      onkeydown: (event) => this.key(event),
    });
  }

  push(tokens) {
    const nodes = document.createDocumentFragment();
    for (const token of tokens) {
      const [text, logprob] = token;
      const at = this.tokens.length;
      const node = el("span", { class: "token", tabindex: at ? -1 : 0, "data-at": at }, text);
      node.style.setProperty("--doubt", (1 - Math.exp(logprob)).toFixed(3));
      nodes.append(node);
      this.tokens.push(token);
    }
    this.node.append(nodes);
  }

  point(node) {
    const token = this.tokens[node.dataset?.at];
    if (token) showAlternatives(node, token);
    else hideAlternatives();
  }

  key(event) {
    if (event.key === "Escape") hideAlternatives();
    moveFocus(event, [...this.node.children], (next) => {
      event.target.tabIndex = -1;
      next.tabIndex = 0;
    });
  }
}

function showAlternatives(node, [text, logprob, others]) {
  const box = find("alternatives");
  const rows = others.some(([other]) => other === text) ? others : [[text, logprob], ...others];
  rows.sort((a, b) => b[1] - a[1]);
  box.replaceChildren(...rows.map((row) => alternative(row, row[0] === text)));
  box.hidden = false;
  node.setAttribute("aria-describedby", box.id);
  place(box, node.getClientRects()[0]);
}

function alternative([text, logprob], chosen) {
  const bar = el("i");
  bar.style.setProperty("--share", Math.exp(logprob).toFixed(4));
  const value = logprob <= -9999 ? "never" : logprob.toFixed(2);
  return el(
    "div",
    { class: chosen ? "chosen" : "" },
    el("code", {}, visible(text)),
    bar,
    el("b", {}, percent(logprob)),
    el("span", {}, value),
  );
}

function place(box, anchor) {
  const margin = 8;
  const left = Math.min(anchor.left, window.innerWidth - box.offsetWidth - margin);
  const above = anchor.top - box.offsetHeight - margin;
  box.style.left = `${Math.max(margin, left)}px`;
  box.style.top = `${above > margin ? above : anchor.bottom + margin}px`;
}

export function hideAlternatives() {
  find("alternatives").hidden = true;
}
