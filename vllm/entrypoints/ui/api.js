// The server, as the page calls it: paths are relative, so that a proxy may show it anywhere.

import { stored } from "./store.js";

export class ServerError extends Error {
  constructor(message, { status = 0, param = null, kind = "", retryAfter_s = null } = {}) {
    super(message);
    this.status = status; // 0: there was no answer
    this.param = param;
    this.kind = kind;
    this.retryAfter_s = retryAfter_s;
  }
}

export async function call(path, { body = null, signal = null } = {}) {
  const headers = {};
  const key = stored.key.get();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== null) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body === null ? "GET" : "POST",
      body: body === null ? undefined : JSON.stringify(body),
      headers,
      signal,
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. It may be starting or stopped.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const wait = Number(response.headers.get("retry-after"));
  const facts = { status: response.status, retryAfter_s: wait > 0 ? wait : null };
  try {
    return fromServer((await response.json()).error, facts);
  } catch {
    return new ServerError(`The server answered with status ${response.status}.`, facts);
  }
}

function fromServer(error, facts = {}) {
  const { message, param = null, type = "", code = 0 } = error;
  return new ServerError(message, { status: code, param, kind: type, ...facts });
}

// The chunks of a stream. Ends when the server says so; anything else is an error.
export async function* chunks(path, body, signal) {
  const response = await call(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new ServerError("The answer broke off: the connection was closed.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      if (event.startsWith(":")) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw fromServer(chunk.error);
      yield chunk;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The answer broke off: the connection was lost.");
  }
}
