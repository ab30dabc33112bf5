// One study: its jobs, arms side by side with intervals, and quality against what it took.

import { askJson, listen } from "./api.js";
import { Chart, Series } from "./charts.js";
import { $, bytes, chip, h, live, number, oneAtATime, setRows, show } from "./dom.js";

const name = decodeURIComponent(location.pathname.split("/").at(-1));
const AXES = { step: ["steps", 1], seconds: ["seconds", 1], received_bytes: ["MB received by all replicas", 1e-6], flops: ["billions of operations of all replicas", 1e-9] };
const METRICS = { log_loss: ["log loss", 1, ""], accuracy: ["accuracy", 100, " %"], calibration_error: ["ECE", 100, " %"], mean_abs_difference: ["churn", 1, ""], flips: ["flips", 100, " %"] };
const charts = {};
let report = null;

$("title").textContent = `Study ${name}`;
document.title = `${name} · codistill`;
$("axis").replaceChildren(...Object.entries(AXES).map(([key, [text]]) => h("option", { value: key }, text)));

const load = oneAtATime(async () => {
  const asked = new URLSearchParams(location.search).get("baseline");
  const found = await askJson(`/api/v1/studies/${encodeURIComponent(name)}${asked ? `?baseline=${encodeURIComponent(asked)}` : ""}`);
  drawJobs(found.jobs);
  report = found.report;
  show($("report"), report !== null);
  show($("why"), report === null);
  $("why").textContent = found.why ?? "";
  if (report !== null) drawReport(found.jobs);
});

function drawJobs(jobs) {
  const seeds = [...new Set(jobs.map(({ seed }) => seed))].sort((a, b) => a - b);
  const rows = Map.groupBy(jobs, ({ arm, choice }) => `${arm} ${choice}`);
  const tried = new Set(jobs.filter(({ choice }) => choice > 0).map(({ arm }) => arm));
  $("jobs-head").replaceChildren(h("tr", {}, h("th", { scope: "col" }, "Arm"), ...seeds.map((seed) => h("th", { scope: "col" }, `seed ${seed}`))));
  setRows($("jobs"), [...rows.entries()].map(([key, own]) => h("tr", { "data-key": key },
    h("th", { scope: "row" }, tried.has(own[0].arm) ? `${own[0].arm}, combination ${own[0].choice + 1}` : own[0].arm),
    ...seeds.map((seed) => own.find((job) => job.seed === seed)).map((job) => h("td", {}, job ? h("a", { href: `/jobs/${job.id}`, title: job.id }, chip(job.state)) : "–")))));
}

/** A figure of a metric with its unit; `signed` for differences. */
function figure(metric, value, signed = false) {
  if (value === null || value === undefined) return "–";
  const [, factor, unit] = METRICS[metric];
  const text = (value * factor).toFixed(metric === "mean_abs_difference" ? 5 : factor === 1 ? 4 : 2);
  return `${signed && value >= 0 ? "+" : ""}${text}${unit}`.replace("-", "−");
}

const ratio = (arm, key) => (report.ratios[arm] ? `${report.ratios[arm][key].toFixed(2)} ×` : "–");

function drawReport(jobs) {
  const { rows, differences, notes, baseline } = report.comparison;
  const arms = [...new Set(jobs.map(({ arm }) => arm))];
  $("baseline").replaceChildren(...arms.map((arm) => h("option", { value: arm, selected: arm === baseline }, arm)));
  setRows($("arms"), rows.map((row) => h("tr", { "data-key": row.arm },
    h("th", { scope: "row" }, row.arm), h("td", { class: "number" }, String(row.runs)),
    ...Object.keys({ accuracy: 0, log_loss: 0, calibration_error: 0, mean_abs_difference: 0, flips: 0 }).map((metric) => h("td", { class: "number" }, figure(metric, row[metric]))),
    h("td", { class: "number" }, ratio(row.arm, "units")), h("td", { class: "number" }, ratio(row.arm, "flops")), h("td", { class: "number" }, bytes(row.bytes_exchanged)))));
  setRows($("differences"), differences.map(({ arm, metric, interval, n, verdict }) => h("tr", { "data-key": `${arm} ${metric}` },
    h("th", { scope: "row" }, arm), h("td", {}, METRICS[metric][0]),
    h("td", { class: "number" }, figure(metric, interval?.mean, true)),
    h("td", { class: "number" }, interval ? `${figure(metric, interval.low, true)} to ${figure(metric, interval.high, true)}` : "–"),
    h("td", { class: "number" }, String(n)), h("td", {}, verdict ?? "–"))));
  const made = report.origins.map(({ text }) => `Made with ${text}`);
  $("notes").replaceChildren(...[...notes, ...made].map((note) => h("li", {}, note)));
  const times = (value) => (value === null ? "–" : `${value.toFixed(2)} ×`);
  show($("reach-card"), Object.values(report.reach).some(({ seeds }) => seeds > 0));
  setRows($("reach"), Object.entries(report.reach).map(([arm, { seeds, reached, steps, steps_interval: interval, flops, received_bytes }]) => h("tr", { "data-key": arm },
    h("th", { scope: "row" }, arm), h("td", { class: "number" }, `${reached} of ${seeds}`), h("td", { class: "number" }, times(steps)),
    h("td", { class: "number" }, interval ? `${interval.low.toFixed(2)} to ${interval.high.toFixed(2)}` : "–"),
    h("td", { class: "number" }, times(flops)), h("td", { class: "number" }, received_bytes === null ? "–" : bytes(received_bytes)))));
  const tried = Object.entries(report.tried).flatMap(([arm, all]) => all.map((one, at) => ({ arm, at, ...one })));
  show($("tried-card"), tried.length > 0);
  const chosen = (arm) => JSON.stringify(report.chosen[arm]);
  setRows($("tried"), tried.map(({ arm, at, settings, validation_log_loss }) => h("tr", { "data-key": `${arm} ${at}` },
    h("th", { scope: "row" }, arm), h("td", {}, h("code", {}, Object.entries(settings).map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join(", "))),
    h("td", { class: "number" }, number(validation_log_loss)), h("td", {}, chosen(arm) === JSON.stringify(settings) ? "chosen" : ""))));
  drawCurves();
}

function drawCurves() {
  const key = $("axis").value;
  const [text, factor] = AXES[key];
  charts[key] ??= new Chart($("charts"), { title: `Against ${text}`, hint: "The mean over seeds of the model that stands for each run.", height: 300, x: text, log: false });
  const lines = Object.entries(report.curves).map(([arm, points], index) => {
    const series = new Series();
    points.filter((point) => point[key] !== null).forEach((point) => series.add(point[key] * factor, point.log_loss));
    return { label: arm, index, series };
  });
  for (const [other, chart] of Object.entries(charts)) chart.draw(other === key ? lines : []);
}

$("axis").addEventListener("change", drawCurves);
$("baseline").addEventListener("change", () => {
  history.replaceState(null, "", `?baseline=${encodeURIComponent($("baseline").value)}`);
  load();
});

await load();
listen("/api/v1/events", (event) => { if (event === "state") load(); }, { state: live });
