// Asking the service: with a token where one is needed, and with errors as sentences.

const KEY = "codistill-token";
export const NEEDS_TOKEN = document.documentElement.dataset.needsToken === "yes";

/** An answer that is an error; `errors` names bad keys, where there are any. */
export class Problem extends Error {
  constructor(status, value, retryAfterS = 0) {
    super(value.detail ?? `the answer was ${status}`);
    this.status = status;
    this.code = value.code ?? "unknown";
    this.errors = value.errors ?? [];
    this.retryAfterS = retryAfterS;
  }
}

// A page that the browser kept whole while another was shown listens no more.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

/** An Idempotency-Key; randomUUID would be there on loopback and over TLS only. */
export const newKey = () => [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(16).padStart(8, "0")).join("");

let asking = null;

/** The token of this tab; asks for one, once, when there is none. */
function token(wrong = "") {
  const kept = sessionStorage.getItem(KEY);
  if (kept && !wrong) return Promise.resolve(kept);
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token");
    const input = document.getElementById("token-value");
    document.getElementById("token-wrong").textContent = wrong;
    input.value = "";
    // Esc would leave a page that can show nothing.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, input.value.trim());
      asking = null;
      resolve(input.value.trim());
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** The answer, if it is none but good. Throws `Problem`; waits once when told that this was too often. */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (let waited = false; ;) {
    const sent = { Accept: "application/json", ...headers };
    const used = NEEDS_TOKEN ? await token() : null;
    if (used) sent.Authorization = `Bearer ${used}`;
    if (body !== undefined) sent["Content-Type"] = "application/json";
    const answer = await fetch(path, { method, headers: sent, body, signal, cache: "no-store" });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      // Another request may have been told so meanwhile, and have got a better one.
      if (sessionStorage.getItem(KEY) === used) await token("The service does not know this token, or it has ended.");
      continue;
    }
    const retryAfterS = Number(answer.headers.get("Retry-After") ?? 0);
    const problem = new Problem(answer.status, await answer.json().catch(() => ({})), retryAfterS);
    if (problem.code !== "too_many_requests" || waited) throw problem;
    waited = true;
    await pause(1000 * Math.min(10, retryAfterS || 1), signal);
  }
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** All rows of a route that tells them in pages, with what its last answer says beside. */
export async function rows(path, query, afterStep) {
  const items = [];
  let answer;
  let thinned = false;
  for (let after = afterStep; after !== null; after = answer.next_after_step) {
    answer = await askJson(`${path}?${new URLSearchParams({ ...query, after_step: after })}`);
    for (const item of answer.items) items.push(item);
    thinned ||= answer.thinned !== null;
  }
  return { ...answer, items, thinned };
}

export const pause = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

/**
 * Server-sent events of `path`, over fetch since EventSource sends no token: `heard(name, data)` for each. Comes back
 * with the last id when a stream ends, until `over()`; `state(live)` says whether it listens.
 */
export async function listen(path, heard, { over = () => false, state = () => {} } = {}) {
  const stop = new AbortController();
  addEventListener("pagehide", () => stop.abort(), { once: true });
  let last = null;
  for (let delayMs = 500; !stop.signal.aborted && !over();) {
    try {
      const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": last }) };
      const answer = await ask(path, { headers, signal: stop.signal });
      state(true);
      delayMs = 500;
      for await (const event of events(answer.body)) {
        last = event.id ?? last;
        heard(event.name, JSON.parse(event.data));
      }
    } catch (error) {
      if (stop.signal.aborted) return;
      if (error instanceof Problem && error.status === 404) return;
      delayMs = Math.min(15000, delayMs * 2);
      state(false);
    }
    await pause(delayMs, stop.signal);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const event = parse(text.slice(0, end));
      if (event !== null) yield event;
    }
  }
}

function parse(block) {
  const event = { name: "message", data: "", id: null };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    const value = line.slice(colon + 2);
    if (line.startsWith("event: ")) event.name = value;
    else if (line.startsWith("data: ")) event.data += value;
    else if (line.startsWith("id: ")) event.id = value;
  }
  return event.data === "" ? null : event;
}
