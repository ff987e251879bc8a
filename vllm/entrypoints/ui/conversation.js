// The conversation: its turns, their views, and the answer that is being written.

import { call, chunks, ServerError } from "./api.js";
import { announce, el, find, textButton } from "./dom.js";
import { AnswerView, UserView } from "./message.js";
import { stored } from "./store.js";
import { tokensOf } from "./tokens.js";

const SUGGESTIONS = [
  "Tell me a story about a fox named Ada.",
  "What is the opposite of hot?",
  "Name three animals.",
];
const BEGINNINGS = ["Once upon a time, there was", "One evening, Ada had to"];
const TOP_LOGPROBS = 5;
const CONTINUATION_TOKENS = 256; // where a text would end has no natural limit
const NEAR_END_PX = 48;
const SHORTEST_S = 0.1; // a rate over less says how a network packs, not how fast tokens come

export class Conversation {
  // `page` knows what the composer and the settings say: mode, model, wantsTokens, maxLogprobs,
  // settings; it is told onrun(isRunning), onedit(text) and onkey(), which asks for a key.
  constructor(page) {
    this.page = page;
    this.turns = stored.turns.get();
    this.log = find("log");
    this.scroller = find("scroller");
    this.running = null; // what stops the answer being written
    this.follows = true;
    this.scroller.addEventListener("scroll", () => this.noteScroll());
    find("latest").addEventListener("click", () => this.toEnd(true));
    for (const turn of this.turns) this.show(turn)?.fill?.();
    this.showEmpty();
    this.toEnd(true);
  }

  // -- what the page shows ------------------------------------------------------------------------

  show(turn) {
    const actions = {
      edit: () => this.edit(),
      again: () => this.regenerate(),
      more: () => this.send(turn.prompt + turn.content),
    };
    if (turn.role === "user" && turn.mode === "completion") return null;
    const view = turn.role === "user" ? new UserView(turn, actions) : new AnswerView(turn, actions);
    view.ondraw = () => this.toEnd();
    this.log.append(view.node);
    if (turn.error) view.fail(this.errorCard(new ServerError(turn.error.message, turn.error)));
    return view;
  }

  redraw() {
    this.log.replaceChildren();
    for (const turn of this.turns) this.show(turn)?.fill?.();
    this.showEmpty();
  }

  showEmpty() {
    find("empty")?.remove();
    if (this.turns.length) return;
    const isChat = this.page.mode === "chat";
    const lines = isChat ? SUGGESTIONS : BEGINNINGS;
    const hint = isChat ? "What is said stays in this tab." : "The model goes on where you stop.";
    const buttons = lines.map((text) => textButton(text, () => this.send(text), "suggestion"));
    this.log.append(
      el(
        "div",
        { id: "empty" },
        el("h2", {}, isChat ? "Ask the model something" : "Begin a text"),
        el("p", {}, hint),
        ...buttons,
      ),
    );
  }

  noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    find("latest").hidden = this.follows;
  }

  toEnd(always = false) {
    if (always) this.follows = true;
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    find("latest").hidden = this.follows;
  }

  // -- what a person does -------------------------------------------------------------------------

  async send(text) {
    const complaint = this.page.settings.complaint();
    this.page.note(complaint);
    if (this.running || !text.trim() || complaint) return;
    if (this.editing) this.dropLastExchange();
    this.editing = false;
    this.page.onsent();
    this.turns.push({ role: "user", mode: this.page.mode, content: text });
    find("empty")?.remove();
    this.show(this.turns.at(-1));
    await this.answer();
  }

  stop() {
    this.running?.abort();
  }

  async regenerate() {
    const complaint = this.page.settings.complaint();
    this.page.note(complaint);
    if (this.running || complaint || this.turns.at(-1)?.role !== "assistant") return;
    this.turns.pop();
    this.log.lastElementChild.remove();
    await this.answer();
  }

  edit() {
    const last = this.turns.findLast((turn) => turn.role === "user");
    if (!last || this.running) return;
    this.editing = true;
    this.page.onedit(last.content);
  }

  clear() {
    this.stop();
    this.editing = false;
    this.turns = [];
    this.save();
    this.redraw();
    announce("Conversation cleared");
  }

  dropLastExchange() {
    while (this.turns.length && this.turns.pop().role !== "user");
    this.redraw();
  }

  save() {
    if (stored.turns.set(this.turns)) return;
    // The tokens are what takes the room.
    stored.turns.set(this.turns.map(({ tokens, ...turn }) => turn));
  }

  // -- an answer ----------------------------------------------------------------------------------

  async answer() {
    const asked = this.turns.at(-1);
    const turn = {
      role: "assistant",
      mode: asked.mode,
      prompt: asked.content,
      content: "",
      reasoning: "",
      tokens: [],
      wantsTokens: this.page.wantsTokens,
      isJson: this.page.settings.wantsJson,
    };
    this.turns.push(turn);
    const view = this.show(turn);
    this.running = new AbortController();
    this.log.setAttribute("aria-busy", "true");
    view.node.classList.add("streaming");
    this.page.onrun(true);
    this.toEnd(true);
    try {
      await this.read(turn, view);
      announce(`Answer finished. ${turn.content.slice(0, 400)}`);
    } catch (error) {
      this.failed(turn, view, error);
    } finally {
      view.node.classList.remove("streaming");
      view.finish();
      this.running = null;
      this.log.setAttribute("aria-busy", "false");
      this.page.onrun(false);
      this.toEnd();
      this.save();
    }
  }

  async read(turn, view) {
    const sent_ms = performance.now();
    let first_ms = null;
    let last_ms = sent_ms;
    const path = turn.mode === "chat" ? "v1/chat/completions" : "v1/completions";
    for await (const chunk of chunks(path, this.body(turn), this.running.signal)) {
      const choice = chunk.choices[0];
      if (choice) {
        const content = choice.delta?.content ?? choice.text ?? "";
        const reasoning = choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "";
        const tokens = tokensOf(choice.logprobs);
        if (content || reasoning || tokens.length) {
          last_ms = performance.now();
          first_ms ??= last_ms;
        }
        turn.content += content;
        turn.reasoning += reasoning;
        turn.tokens.push(...tokens);
        turn.finish = choice.finish_reason ?? turn.finish;
        view.push(content, reasoning, tokens);
      }
      const tokens = chunk.usage?.completion_tokens;
      if (tokens !== undefined) turn.figures = figures(tokens, sent_ms, first_ms, last_ms);
    }
  }

  body(turn) {
    const { settings, model } = this.page;
    const common = {
      ...(model ? { model } : {}),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
      ...settings.fields(),
    };
    const top = Math.min(TOP_LOGPROBS, this.page.maxLogprobs);
    if (turn.mode === "completion") {
      const logprobs = turn.wantsTokens ? { logprobs: top } : {};
      return { prompt: turn.prompt, max_tokens: CONTINUATION_TOKENS, ...common, ...logprobs };
    }
    const logprobs = turn.wantsTokens ? { logprobs: true, top_logprobs: top } : {};
    const prompt = settings.systemPrompt;
    const system = prompt ? [{ role: "system", content: prompt }] : [];
    // A question that got no answer is left out: templates insist that roles take turns.
    const said = this.turns
      .slice(0, -1)
      .filter(({ mode, error }, i, all) => mode === "chat" && !error && !all[i + 1]?.error);
    const messages = [...system, ...said.map(({ role, content }) => ({ role, content }))];
    return { messages, ...common, ...logprobs };
  }

  failed(turn, view, error) {
    if (error.name === "AbortError") {
      turn.finish = "abort";
      announce("Stopped");
      return;
    }
    const { message, status = 0, param = null, kind = "", retryAfter_s = null } = error;
    turn.error = { message, status, param, kind, retryAfter_s };
    turn.finish = "error";
    view.fail(this.errorCard(error));
    if (status === 401) this.page.onkey();
  }

  errorCard(error) {
    const again = textButton("Try again", () => this.regenerate());
    if (error.retryAfter_s) countDown(again, error.retryAfter_s);
    const buttons = [again];
    if (error.status === 401) buttons.push(textButton("Enter a key", () => this.page.onkey()));
    return el(
      "div",
      { class: "error", role: "alert" },
      el("strong", {}, titleOf(error)),
      el("p", {}, error.message),
      el("p", { class: "row" }, ...buttons),
    );
  }
}

function figures(tokens, sent_ms, first_ms, last_ms) {
  const span_s = (last_ms - first_ms) / 1000;
  const isMeasured = first_ms !== null && tokens > 1 && span_s >= SHORTEST_S;
  return {
    tokens,
    first_s: first_ms === null ? null : (first_ms - sent_ms) / 1000,
    rate: isMeasured ? (tokens - 1) / span_s : null,
  };
}

function titleOf({ status, kind, param }) {
  if (status === 0) return "No connection";
  if (status === 401) return "This server needs a key";
  if (kind === "EngineDeadError") return "The engine has stopped";
  if (status === 503 || status === 429) return "The server is busy";
  if (status === 404) return "Not found";
  if (status < 500) return `The server cannot do this${param ? `: ${param}` : ""}`;
  return "Something went wrong in the server";
}

function countDown(button, seconds) {
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Try again in ${Math.ceil(seconds)} s` : "Try again";
  if (seconds > 0) setTimeout(() => countDown(button, seconds - 1), 1000);
}

export async function servedModels() {
  const response = await call("v1/models");
  return (await response.json()).data.map((card) => card.id);
}
