// The page: composer, views, theme and key around the conversation and the engine.

import { Conversation, servedModels } from "./conversation.js";
import { el, find, moveFocus, radios, setIcon } from "./dom.js";
import { LiveView } from "./live.js";
import { Settings } from "./settings.js";
import { stored } from "./store.js";
import { hideAlternatives } from "./tokens.js";

const MODES = [
  ["chat", "Chat"],
  ["completion", "Complete"],
];
const page = {
  mode: "chat",
  model: "",
  wantsTokens: false,
  maxLogprobs: 5,
  settings: null,
  note: showNote,
  onrun: showRunning,
  onsent: () => setPrompt(""),
  onedit: startEdit,
  onkey: askForKey,
};
const prompt = find("prompt");
let conversation = null;
let chooseMode = null;
let hasFacts = false;

function showNote(text) {
  find("note").hidden = !text;
  find("note").textContent = text ?? "";
}

function setPrompt(text) {
  prompt.value = text;
  fitPrompt();
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function showRunning(isRunning) {
  const send = find("send");
  setIcon(send, isRunning ? "stop" : "send", isRunning ? "Stop" : "Send");
  document.body.classList.toggle("running", isRunning);
}

function startEdit(text) {
  setPrompt(text);
  showNote("Editing your last message: sending replaces it and its answer. Esc cancels.");
  prompt.focus();
}

function cancelEdit() {
  if (!conversation.editing) return;
  conversation.editing = false;
  setPrompt("");
  showNote(null);
}

// -- composer -------------------------------------------------------------------------------------

function setUpComposer() {
  setIcon(find("clear"), "clear", "Clear the conversation");
  find("clear").addEventListener("click", () => (conversation.clear(), prompt.focus()));
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (conversation.running) conversation.stop();
    else conversation.send(prompt.value);
  });
  prompt.addEventListener("input", fitPrompt);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!conversation.running) conversation.send(prompt.value);
    } else if (event.key === "ArrowUp" && !prompt.value) {
      event.preventDefault();
      conversation.edit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || find("key-dialog").open) return;
    hideAlternatives();
    if (conversation.running) conversation.stop();
    else cancelEdit();
  });
  find("token-view").addEventListener("click", () => showWantsTokens(!page.wantsTokens));
  find("json-chip").addEventListener("click", () => view("settings"));
  chooseMode = radios(find("mode"), MODES, (mode) => {
    page.mode = mode;
    const isChat = mode === "chat";
    prompt.placeholder = isChat ? "Message" : "The text to continue";
    prompt.setAttribute("aria-label", prompt.placeholder);
    conversation?.showEmpty();
  });
}

function showWantsTokens(wanted) {
  page.wantsTokens = wanted;
  find("token-view").setAttribute("aria-pressed", String(wanted));
}

// -- views ----------------------------------------------------------------------------------------

const wide = matchMedia("(min-width: 900px)");

function view(name) {
  // Beside the conversation there is always one of the other two.
  const shown = wide.matches && name === "chat" ? "engine" : name;
  document.body.dataset.view = shown;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isShown = tab.dataset.view === shown;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
  }
}

function setUpViews() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => view(tab.dataset.view));
    tab.addEventListener("keydown", (event) => {
      const offered = tabs.filter((other) => other.offsetParent);
      moveFocus(event, offered, (next) => view(next.dataset.view));
    });
  }
  wide.addEventListener("change", () => view("chat"));
  view("chat");
}

// -- theme ----------------------------------------------------------------------------------------

function setUpTheme() {
  const button = find("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = stored.theme.get();
    if (chosen) document.documentElement.dataset.theme = chosen;
    const isDark = chosen ? chosen === "dark" : prefersDark.matches;
    setIcon(button, isDark ? "light" : "dark", isDark ? "Light theme" : "Dark theme");
    return isDark;
  };
  button.addEventListener("click", () => {
    const next = show() ? "light" : "dark";
    stored.theme.set(next);
    document.documentElement.dataset.theme = next;
    show();
  });
  prefersDark.addEventListener("change", show);
  show();
}

// -- key and models -------------------------------------------------------------------------------

function askForKey() {
  const dialog = find("key-dialog");
  if (dialog.open) return;
  find("key").value = stored.key.get();
  dialog.returnValue = "cancel"; // what Escape leaves, which says nothing itself
  dialog.showModal();
}

function setUpKey() {
  const dialog = find("key-dialog");
  find("key-later").addEventListener("click", () => dialog.close("cancel"));
  dialog.addEventListener("close", async () => {
    if (dialog.returnValue === "save") {
      stored.key.set(find("key").value.trim());
      await showModels();
      if (conversation.turns.at(-1)?.error?.status === 401) await conversation.regenerate();
    }
    prompt.focus();
  });
}

async function showModels() {
  let names;
  try {
    names = await servedModels();
  } catch (error) {
    if (error.status === 401) askForKey();
    return;
  }
  page.model = names.includes(page.model) ? page.model : names[0];
  const place = find("model");
  if (names.length === 1) place.replaceChildren(el("span", { title: names[0] }, names[0]));
  else {
    const options = names.map((name) => el("option", {}, name));
    const select = el("select", { "aria-label": "Model" }, ...options);
    select.value = page.model;
    select.addEventListener("change", () => (page.model = select.value));
    place.replaceChildren(select);
  }
}

// -- the engine -----------------------------------------------------------------------------------

function showStatus(state, text) {
  const status = find("status");
  if (status.lastElementChild.textContent === text) return;
  status.dataset.state = state;
  status.lastElementChild.textContent = text;
}

function takeAnswer(answer) {
  if (answer === null) return showStatus("lost", "No connection");
  if (!hasFacts) {
    showModels();
    takeFacts(answer.facts);
  }
  if (!answer.is_alive) return showStatus("dead", "Engine stopped");
  const { num_running: running, num_waiting: waiting } = answer.live;
  const queue = waiting ? `, ${waiting} waiting` : "";
  if (running + waiting) return showStatus("busy", `${running} running${queue}`);
  return showStatus("ready", "Ready");
}

function takeFacts(facts) {
  hasFacts = true;
  document.title = `${facts.models[0]} · vLLM`;
  page.maxLogprobs = facts.max_logprobs < 0 ? 5 : facts.max_logprobs;
  find("token-view").disabled = page.maxLogprobs === 0;
  page.settings.showDefaults(facts.default_sampling_params);
  if (!facts.has_chat_template) {
    chooseMode("completion");
    const chat = find("mode").firstElementChild;
    chat.disabled = true;
    chat.title = "This model has no chat template";
  }
}

window.addEventListener("pagehide", () => conversation.save());
setUpTheme();
setUpComposer();
chooseMode("chat");
page.settings = new Settings((settings) => (find("json-chip").hidden = !settings.wantsJson));
conversation = new Conversation(page);
setUpViews();
setUpKey();
showRunning(false);
fitPrompt();
new LiveView(takeAnswer);
