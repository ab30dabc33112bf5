// A spec, written in a form or as JSON, checked while it is written, and submitted.

import { ask, askJson, newKey, pause, Problem } from "./api.js";
import { $, h, problem, show } from "./dom.js";
import { errorId, fieldId, Form } from "./form.js";
import { price } from "./price.js";

const WAIT_MS = 400;
const START = { name: "my-job", recipe: { kind: "digits" }, method: { kind: "codistillation" }, replicas: { count: 2 }, training: { steps: 600 } };
const json = $("json");
const verdict = $("verdict");
let round = 0;
// Of this very spec: sent twice by a nervous hand, it is one job.
let key = newKey();

const form = new Form($("fields"), await askJson("/api/v1/schema"), (spec) => {
  json.value = JSON.stringify(spec, null, 2);
  check();
});

json.addEventListener("input", () => {
  const spec = parsed();
  if (spec !== null) form.show(spec);
  check();
});

function parsed() {
  try {
    const value = JSON.parse(json.value);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch { return null; }
}

/** Asks the service what it would say, once nothing has been typed for a moment. */
async function check() {
  const mine = ++round;
  key = newKey();
  $("send").disabled = true;
  await pause(WAIT_MS);
  if (mine !== round) return;
  try {
    const { spec, estimate } = await askJson("/api/v1/jobs:validate", { method: "POST", body: json.value });
    if (mine !== round) return;
    wrong([]);
    verdict.className = "verdict good";
    verdict.replaceChildren(`This can run: ${spec.replicas.count} × ${spec.training.steps} steps, ${spec.method.kind.replaceAll("_", " ")}.`);
    $("price").replaceChildren(...price(estimate));
    show($("price-box"), true);
    $("send").disabled = false;
  } catch (error) {
    if (mine !== round) return;
    show($("price-box"), false);
    if (!(error instanceof Problem)) { problem(error); return; }
    refused(error);
  }
}

function refused(error) {
  wrong(error.errors);
  verdict.className = "verdict bad";
  const lines = error.errors.length ? error.errors : [{ path: "", message: error.message }];
  verdict.replaceChildren(h("ul", {}, ...lines.map(({ path, message }) => h("li", {}, path ? h("code", {}, path) : null, path ? " " : "", message))));
}

/** Says at each field what is wrong with it. */
function wrong(errors) {
  for (const element of $("fields").querySelectorAll(".wrong")) element.textContent = "";
  for (const element of $("fields").querySelectorAll("[aria-invalid]")) element.removeAttribute("aria-invalid");
  for (const { path, message } of errors) {
    const place = path && document.getElementById(errorId(path));
    if (!place) continue;
    place.textContent = message;
    place.closest("details")?.setAttribute("open", "");
    document.getElementById(fieldId(path))?.setAttribute("aria-invalid", "true");
  }
}

$("send").addEventListener("click", async () => {
  $("send").disabled = true;
  try {
    const job = await (await ask("/api/v1/jobs", { method: "POST", body: json.value, headers: { "Idempotency-Key": key } })).json();
    location.href = `/jobs/${job.id}`;
  } catch (error) {
    if (error instanceof Problem) refused(error); else problem(error);
    $("send").disabled = false;
  }
});
$("fields").addEventListener("submit", (event) => event.preventDefault());

/** What the schema has as default anyway is not said again. */
function withoutDefaults(spec, defaults) {
  const kept = {};
  for (const [name, value] of Object.entries(spec)) {
    const usual = defaults?.[name];
    const isObject = value !== null && typeof value === "object" && !Array.isArray(value);
    const same = JSON.stringify(value) === JSON.stringify(usual);
    if (name === "kind") kept.kind = value;
    else if (isObject && usual && usual.kind === value.kind) {
      const inner = withoutDefaults(value, usual);
      if (!same) kept[name] = inner;
    } else if (!same) kept[name] = value;
  }
  return kept;
}

async function begin() {
  const from = new URLSearchParams(location.search).get("from");
  if (!from) return START;
  const { spec } = await askJson(`/api/v1/jobs/${encodeURIComponent(from)}`);
  const { spec: defaults } = await askJson("/api/v1/jobs:validate", { method: "POST", body: "{}" });
  return withoutDefaults(spec, defaults);
}

try {
  const spec = await begin();
  form.show(spec);
  json.value = JSON.stringify(spec, null, 2);
  check();
} catch (error) { problem(error); }
