// Two to five jobs side by side: results, one chart over all, and where their specs differ.

import { askJson } from "./api.js";
import { Chart } from "./charts.js";
import { $, bytes, chip, duration, h, number, oneAtATime, show, TERMINAL, whole } from "./dom.js";
import { Records } from "./records.js";

const MOST = 5;
const PREFERRED = ["eval/log_loss", "eval/accuracy", "train/task_loss"];
const ids = [...new Set((new URLSearchParams(location.search).get("ids") ?? "").split(",").filter(Boolean))].slice(0, MOST);
const jobs = new Map();
const records = new Map();
const chart = new Chart($("charts"), { title: "Over the steps", hint: "A line for each replica, a colour for each job.", height: 300, log: true });

const load = oneAtATime(async () => {
  const fetched = await Promise.all(ids.map(async (id) => jobs.get(id) ?? [await askJson(`/api/v1/jobs/${encodeURIComponent(id)}`), await disagreement(id)]));
  ids.forEach((id, i) => jobs.set(id, fetched[i]));
  for (const id of ids) {
    if (!records.has(id)) records.set(id, jobs.get(id)[0].status.replicas.filter(({ replica }) => replica.startsWith("replica-")).map(({ replica }) => new Records(encodeURIComponent(id), replica)));
  }
  history.replaceState(null, "", ids.length ? `?ids=${ids.join(",")}` : location.pathname);
  draw();
  if (ids.length < 2) return;
  await Promise.all(ids.flatMap((id) => records.get(id)).map((record) => record.fetch()));
  drawChart();
});

async function disagreement(id) {
  const { flips } = await askJson(`/api/v1/jobs/${encodeURIComponent(id)}/disagreement`);
  const pairs = flips.flatMap((row, i) => row.slice(i + 1));
  return pairs.length ? pairs.reduce((sum, share) => sum + share, 0) / pairs.length : null;
}

async function offer() {
  const { items } = await askJson("/api/v1/jobs?limit=200");
  const free = items.filter((job) => !ids.includes(job.id));
  $("add").replaceChildren(h("option", { value: "" }, ids.length < MOST ? "add a job…" : `at most ${MOST}`), ...free.map((job) => h("option", { value: job.id }, `${job.id} (${job.status.state.toLowerCase()})`)));
  $("add").disabled = ids.length >= MOST;
}

$("add").addEventListener("change", async () => {
  if ($("add").value) ids.push($("add").value);
  await load();
  await offer();
});

async function drop(id) {
  ids.splice(ids.indexOf(id), 1);
  await load();
  await offer();
  $("add").focus();
}

const ROWS = [
  ["State", ({ status }) => chip(status.state)],
  ["Method", ({ spec }) => spec.method.kind.replaceAll("_", " ")],
  ["Replicas", ({ spec }) => whole(spec.replicas.count)],
  ["Steps", ({ status }) => `${whole(status.progress.completed)} of ${whole(status.progress.total)}`],
  ["Accuracy", (job) => spread(job, "eval/accuracy")],
  ["Log loss", (job) => spread(job, "eval/log_loss")],
  ["Disagreement", (_job, flips) => (flips === null ? "–" : `${number(100 * flips)} %`)],
  ["Received", ({ result }) => (result ? bytes(Object.values(result.replicas).reduce((sum, replica) => sum + (replica.bytes_received ?? 0), 0)) : "–")],
  ["Time", (job) => (job.started_at && TERMINAL.has(job.status.state) ? duration((Date.parse(job.ended_at) - Date.parse(job.started_at)) / 1000) : "–")],
];

/** The least and the greatest of the replicas' last values. */
function spread({ status }, name) {
  const values = status.replicas.filter(({ replica }) => replica.startsWith("replica-")).map(({ metrics }) => metrics?.[name]).filter((value) => value !== undefined && value !== null);
  if (values.length === 0) return "–";
  const [low, high] = [Math.min(...values), Math.max(...values)].map(number);
  return low === high ? low : `${low} to ${high}`;
}

function draw() {
  $("chosen").replaceChildren(...ids.map((id, i) => h("li", {}, h("i", { class: `key series-${i}` }), h("a", { href: `/jobs/${id}` }, id), h("button", { type: "button", class: "plain", "aria-label": `leave ${id} out`, onclick: () => drop(id) }, "×"))));
  show($("hint"), ids.length < 2);
  show($("result"), ids.length >= 2);
  if (ids.length < 2) return;
  const heads = () => ids.map((id, i) => h("th", { scope: "col", class: "number" }, h("i", { class: `key series-${i}` }), id));
  $("head").replaceChildren(h("tr", {}, h("td", {}), ...heads()));
  $("body").replaceChildren(...ROWS.map(([title, text]) => h("tr", {}, h("th", { scope: "row" }, title), ...ids.map((id) => h("td", { class: "number" }, text(...jobs.get(id)))))));
  const flat = ids.map((id) => new Map(leaves(jobs.get(id)[0].spec, "")));
  const keys = [...new Set(flat.flatMap((spec) => [...spec.keys()]))].filter((key) => new Set(flat.map((spec) => spec.get(key))).size > 1);
  $("diff-head").replaceChildren(h("tr", {}, h("th", { scope: "col" }, "Key"), ...heads()));
  $("diff").replaceChildren(...(keys.length ? keys : [null]).map((key) => key === null ? h("tr", {}, h("td", { colspan: ids.length + 1, class: "quiet" }, "nowhere")) : h("tr", {}, h("th", { scope: "row" }, h("code", {}, key)), ...flat.map((spec) => h("td", { class: "number" }, spec.get(key) ?? "–")))));
}

function leaves(value, path) {
  if (value === null || typeof value !== "object") return [[path, String(value)]];
  return Object.entries(value).flatMap(([key, part]) => leaves(part, path ? `${path}.${key}` : key));
}

function drawChart() {
  const names = [...new Set(ids.flatMap((id) => records.get(id)).flatMap((record) => [...record.metrics.keys()]))].sort();
  const picked = names.includes($("metric").value) ? $("metric").value : PREFERRED.find((name) => names.includes(name)) ?? names[0];
  $("metric").replaceChildren(...names.map((name) => h("option", { value: name, selected: name === picked }, name)));
  const lines = ids.flatMap((id, index) => records.get(id).map((record) => ({ label: `${id} ${record.replica}`, index, series: record.series(picked) })));
  chart.draw(lines, ids.flatMap((id) => records.get(id)).some((record) => record.thinned.metrics));
}

$("metric").addEventListener("change", drawChart);
await load();
await offer();
