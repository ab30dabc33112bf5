// One job: state, replicas, charts of what it has written, logs, what happened, what it left, spec.

import { Actions } from "./actions.js";
import { askJson, listen } from "./api.js";
import { Artifacts } from "./artifacts.js";
import { Chart } from "./charts.js";
import { $, age, bar, bytes, chip, clock, duration, h, live, number, oneAtATime, setRows, show, since, svg, TERMINAL, whole } from "./dom.js";
import { Log } from "./logs.js";
import { drawDisagreement, drawPeers } from "./peers.js";
import { price } from "./price.js";
import { kindOf, Records } from "./records.js";

const id = decodeURIComponent(location.pathname.split("/").at(-1));
const path = `/api/v1/jobs/${encodeURIComponent(id)}`;
const records = new Map();
const log = new Log(encodeURIComponent(id));
const actions = new Actions(id, path, () => loadJob());
const artifacts = new Artifacts(id, path);
let job = null;
let drawnAtEnd = false;

document.title = `${id} · codistill`;
$("name").textContent = id;
$("again").href = `/submit?${new URLSearchParams({ from: id })}`;

const area = $("charts");
const wide = (element) => { element.classList.add("wide"); return element; };
const sync = "steps";
const charts = {
  loss: new Chart(area, { title: "Loss in training", hint: "Of the labels (solid) and of what the teachers say (dashed).", log: true, smooth: true, sync }),
  weight: new Chart(area, { title: "Weight of distillation", hint: "0 until burn-in has ended.", height: 110, sync }),
  evaluated: new Chart(area, { title: "Log loss on validation", sync }),
  accuracy: new Chart(area, { title: "Accuracy on validation", sync }),
  offset: new Chart(area, { title: "Staleness of teachers", hint: "Steps by which a snapshot was behind whoever learned from it (offset, solid), and behind its own teacher (lag, dashed). What was refused is marked.", sync }),
  bytes: new Chart(area, { title: "Bytes received", hint: "Of snapshots of others, since the replica began.", unit: "bytes", sync }),
  step: new Chart(area, { title: "Seconds per step", log: true, sync }),
};
const card = (labelledby) => area.appendChild(h("section", { class: "card", "aria-labelledby": labelledby, hidden: true }));
const disagreement = card("disagreement-title");
const peers = wide(card("peers-title"));
const exchange = wide(card("exchange-title"));
const learner = h("select", { "aria-label": "Staleness as seen by", onchange: () => drawCharts() });
charts.offset.controls.append(learner);
wide(charts.loss.box);
wide(charts.weight.box);

const loadJob = oneAtATime(async () => {
  job = await askJson(path);
  drawJob();
  const ended = TERMINAL.has(job.status.state);
  if (ended) live(true, "ended");
  await Promise.all([artifacts.fetch(`${job.status.state} ${job.status.fence}`), ...(ended ? [loadFamily(), loadRecords()] : [])]);
});

/** Whoever goes on from this job; nobody can before it has ended. */
async function loadFamily() {
  const { items, next_cursor: more } = await askJson(`/api/v1/jobs?${new URLSearchParams({ parent: id, limit: 20 })}`);
  show($("children"), items.length > 0);
  $("children").replaceChildren("gone on from by", ...items.reverse().map((child) => h("span", {}, h("a", { href: `/jobs/${child.id}` }, child.id), " ", chip(child.status.state))), ...(more === null ? [] : ["and older ones"]));
}

const loadRecords = oneAtATime(async () => {
  const ended = TERMINAL.has(job.status.state);
  if (drawnAtEnd) return;
  await Promise.all([...records.values()].map((record) => record.fetch()));
  drawCharts();
  drawDisagreement(disagreement, ended ? await askJson(`${path}/disagreement`) : null, job.spec.replicas.count);
  drawnAtEnd = ended;
});

function drawJob() {
  const { status, spec } = job;
  const labels = Object.entries(job.labels).map(([key, value]) => h("span", { class: "label" }, `${key}=${value}`));
  $("facts").replaceChildren(chip(status.state), ...(status.degraded ? [h("span", { class: "chip recovering" }, "degraded")] : []),
    h("span", {}, `${spec.method.kind.replaceAll("_", " ")} · ${spec.recipe.kind} · ${spec.replicas.count} replica${spec.replicas.count === 1 ? "" : "s"}`),
    h("span", {}, `by ${job.owner}`), h("span", { title: clock(job.created_at) }, `${age(since(job.created_at))} ago`),
    ...limits(), ...(job.parent ? [h("a", { href: `/jobs/${job.parent}` }, `goes on from ${job.parent}`)] : []), ...labels);
  show($("why"), Boolean(status.reason));
  if (status.reason) $("why").textContent = status.reason.message;
  $("why").className = status.state === "FAILED" ? "note bad" : "note";
  actions.draw(status.state);
  const { completed, total } = status.progress;
  $("progress").replaceChildren(bar(completed, total, `${whole(completed)} of ${whole(total)} steps${status.progress.phase ? `, ${status.progress.phase}` : ""}`));
  setRows($("replicas"), status.replicas.map(replicaRow));
  setRows($("changes"), status.transitions.map((change, i) => h("tr", { "data-key": String(i) },
    h("td", { class: "nowrap" }, clock(change.time)), h("td", {}, chip(change.state)), h("td", { class: "number" }, change.fence || "–"), h("td", {}, change.reason?.message ?? ""))));
  drawTime();
  show($("price-card"), job.estimate !== null);
  if (job.estimate !== null) $("price").replaceChildren(...price(job.estimate, job.result?.took ?? null));
  $("spec").textContent = JSON.stringify(spec, null, 2);
  const names = status.replicas.map((replica) => replica.replica);
  for (const name of names) if (!records.has(name)) records.set(name, new Records(encodeURIComponent(id), name));
  log.show([...names, "driver"], TERMINAL.has(status.state));
}

/** What it has reserved so far, and by when it has to begin and to end. */
function limits() {
  const { usage, deadlines } = job;
  const hours = [["CPU", usage.cpu_hours], ["GPU", usage.gpu_hours]].filter(([, value]) => value > 0);
  const times = [["begin", deadlines.start_by], ["end", deadlines.end_by]].filter(([, time]) => time !== null);
  return [...hours.map(([what, value]) => h("span", {}, `${duration(value * 3600)} of ${what} time reserved`)), ...times.map(([what, time]) => h("span", {}, `has to ${what} by ${clock(time)}`))];
}

function replicaRow(replica) {
  const { step, steps } = replica;
  const hears = (replica.teachers ?? []).map((t) => `${t.teacher} (offset ${t.offset_steps}${t.quarantined ? ", in quarantine" : ""})`).join(", ");
  return h("tr", { "data-key": replica.replica },
    h("td", {}, replica.replica),
    h("td", {}, replica.state ?? h("span", { class: "quiet" }, "not begun")),
    h("td", {}, step === null ? "–" : bar(step, steps, `${whole(step)} of ${whole(steps)}`)),
    h("td", { class: "number" }, number(replica.loss)),
    h("td", { class: "number" }, number(replica.metrics?.["eval/accuracy"])),
    h("td", {}, hears || "–"),
    h("td", {}, replica.node ?? "–"),
    h("td", { class: "number" }, replica.incarnation === undefined ? "–" : String(replica.incarnation + 1)),
    h("td", { class: "number" }, replica.seconds_since_beat === null || TERMINAL.has(job.status.state) ? "–" : age(replica.seconds_since_beat)));
}

/** How long the job was in each state, stacked. */
function drawTime() {
  const changes = job.status.transitions;
  const spent = new Map();
  changes.forEach((change, i) => {
    if (TERMINAL.has(change.state)) return;
    const until = i + 1 < changes.length ? Date.parse(changes[i + 1].time) : Date.now();
    spent.set(change.state, (spent.get(change.state) ?? 0) + (until - Date.parse(change.time)) / 1000);
  });
  const total = [...spent.values()].reduce((sum, s) => sum + s, 0);
  if (total <= 0) return;
  let x = 0;
  const parts = [...spent].map(([state, seconds]) => {
    const width = (1000 * seconds) / total;
    x += width;
    return svg("rect", { x: x - width, y: 0, width, height: 12, class: `fill ${state.toLowerCase()}` });
  });
  const picture = svg("svg", { viewBox: "0 0 1000 12", preserveAspectRatio: "none", class: "time", role: "img", "aria-label": "Time in each state" }, ...parts);
  $("time").replaceChildren(picture, h("ul", { class: "legend" }, ...[...spent].map(([state, seconds]) => h("li", {}, h("i", { class: `key fill ${state.toLowerCase()}` }), state.toLowerCase(), " ", h("b", {}, duration(seconds))))));
}

function drawCharts() {
  const own = [...records.values()];
  const thinned = own.some((record) => record.thinned.metrics);
  for (const chart of Object.values(charts)) chart.end = job.status.progress.total / job.status.replicas.length;
  const lines = (name, dash) => own.map((record, index) => ({ label: record.replica, index, dash, series: record.series(name) }));
  const task = lines("train/task_loss").map((line) => ({ ...line, label: `${line.label} labels` }));
  const distill = lines("train/distill_loss", [5, 4]).map((line) => ({ ...line, label: `${line.label} teachers` }));
  charts.loss.draw([...task, ...distill], thinned);
  charts.weight.draw(lines("distill/weight"), thinned);
  charts.evaluated.draw(lines("eval/log_loss"), thinned);
  charts.accuracy.draw(lines("eval/accuracy"), thinned);
  drawStaleness(own);
  charts.bytes.draw(lines("exchange/bytes_received"), thinned);
  charts.step.draw(lines("time/step_s"), thinned);
  drawPeers(peers, own.map((record) => record.replica).filter((name) => name.startsWith("replica-")), own.flatMap(heard));
  drawExchange(own);
}

/** Of one replica's teachers, or of both replicas' where there are two: more lines would hide each other. */
function drawStaleness(own) {
  const learners = own.filter((record) => record.teachers.size > 0);
  const names = learners.map((record) => record.replica);
  show(learner, names.length > 2);
  if (learner.options.length !== names.length) learner.replaceChildren(...names.map((name) => h("option", { value: name }, `by ${name}`)));
  const seen = names.length > 2 ? learners.filter((record) => record.replica === learner.value) : learners;
  const edges = seen.flatMap((record) => [...record.teachers].map(([teacher, ages]) => ({ record, teacher, index: own.findIndex(({ replica }) => replica === teacher), ...ages })));
  const marks = edges.flatMap(({ record, teacher, index, marks: kinds }) => [...kinds].map(([mark, series]) => ({
    label: `${record.replica} ${FOUND[mark](teacher)}`, index, series, mark, count: refusals(record, teacher)[mark],
  })));
  const { max_lag_steps, max_offset_steps } = job.spec.exchange;
  const limits = [{ name: "max_lag_steps", value: max_lag_steps, dash: [5, 4] }, { name: "max_offset_steps", value: max_offset_steps, dash: [] }];
  charts.offset.draw([
    ...edges.map((edge) => ({ label: `${edge.record.replica} hears ${edge.teacher}`, index: edge.index, series: edge.offset })),
    ...edges.map((edge) => ({ label: `lag of ${edge.teacher}`, index: edge.index, dash: [5, 4], series: edge.lag })),
    ...marks,
  ], seen.some((record) => record.thinned.ledger), limits.filter(({ value }) => value !== null && value !== undefined));
  charts.offset.beside.replaceChildren(refusalTable(learners));
}

const FOUND = {
  refused: (teacher) => `refuses ${teacher}`,
  quarantined: (teacher) => `puts ${teacher} in quarantine`,
  "too old": (teacher) => `finds ${teacher} too old`,
};

/** Of one teacher of a replica: snapshots refused, more that put it in quarantine, steps in which it was too old. */
function refusals(record, teacher) {
  const counts = { refused: 0, quarantined: 0, "too old": 0 };
  for (const { verdict, rows } of record.totals.filter((total) => total.teacher === teacher && total.verdict !== "accepted")) counts[kindOf(verdict)] += rows;
  return counts;
}

function refusalTable(learners) {
  const rows = learners.flatMap((record) => [...record.teachers.keys()].map((teacher) => [teacher, record.replica, refusals(record, teacher)]));
  return h("div", { class: "scroll refusals", tabindex: "0", role: "region", "aria-label": "Refusals by teacher" }, h("table", {}, h("caption", {}, "Snapshots refused, and steps in which a teacher was too old to be heard"),
    h("thead", {}, h("tr", {}, h("th", {}, "Teacher"), h("th", {}, "Heard by"), ...["✕ Refused", "◆ Quarantine", "• Too old"].map((title) => h("th", { class: "number" }, title)))),
    h("tbody", {}, ...rows.map(([teacher, replica, counts]) => h("tr", {}, h("td", {}, teacher), h("td", {}, replica),
      ...Object.values(counts).map((count) => h("td", { class: "number" }, whole(count))))))));
}

/** Of each teacher of a replica: steps taught, bytes, snapshots refused; one that is too old is none of these. */
function heard(record) {
  const byTeacher = new Map();
  for (const { teacher, verdict, rows, bytes_received } of record.totals) {
    if (teacher === null) continue;
    const edge = byTeacher.get(teacher) ?? { from: teacher, to: record.replica, rows: 0, bytes: 0, refused: 0 };
    edge.bytes += bytes_received;
    if (verdict === "accepted") edge.rows += rows;
    else if (kindOf(verdict) !== "too old") edge.refused += rows;
    byTeacher.set(teacher, edge);
  }
  return [...byTeacher.values()];
}

const COUNTED = [["bytes_sent", "Sent", bytes], ["bytes_received", "Received", bytes], ["rejected", "Refused", whole], ["unavailable", "Not to be had", whole], ["skipped", "Replaced unsent", whole], ["missed", "Never used", whole], ["quarantined", "In quarantine", whole]];

function drawExchange(own) {
  const those = own.filter((record) => record.metrics.has("exchange/bytes_sent"));
  exchange.hidden = those.length === 0;
  if (exchange.hidden) return;
  const table = h("table", {}, h("caption", { class: "unseen" }, "What the exchange has counted"),
    h("thead", {}, h("tr", {}, h("th", {}, "Replica"), ...COUNTED.map(([, title]) => h("th", { class: "number" }, title)))),
    h("tbody", {}, ...those.map((record) => h("tr", {}, h("td", {}, record.replica), ...COUNTED.map(([name, , text]) => {
      const value = record.series(`exchange/${name}`).last;
      return h("td", { class: "number" }, value === null ? "–" : text(value));
    })))));
  exchange.replaceChildren(h("h2", { id: "exchange-title" }, "Exchange"), h("p", { class: "hint" }, "Counted over the whole job; what is missing is counted, too."), h("div", { class: "scroll" }, table));
}

await loadJob();
if (job !== null && !TERMINAL.has(job.status.state)) {
  await loadRecords();
  let due;
  listen(`${path}/events`, (name) => {
    if (name === "state") loadJob();
    // Records are written every two seconds; a burst of events is one look at them.
    due ??= setTimeout(async () => { due = undefined; await loadJob(); await loadRecords(); }, 1000);
  }, { over: () => TERMINAL.has(job.status.state), state: (is) => { if (!TERMINAL.has(job.status.state)) live(is); } });
}
