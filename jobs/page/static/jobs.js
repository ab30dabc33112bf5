// The list of jobs: filtered, live, and where jobs are chosen to be compared.

import { askJson, listen } from "./api.js";
import { $, age, bar, chip, h, live, oneAtATime, setRows, show, since, TERMINAL, whole } from "./dom.js";

const PAGE = 100;
const MOST = 5;
const form = $("filter");
const progress = new Map();
const chosen = new Set();
let jobs = [];
let limit = PAGE;
let more = false;

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of ["text", "state", "label"]) form.elements[name].value = query.get(name) ?? "";
}

function writeAddress() {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

const load = oneAtATime(async () => {
  const states = form.elements.state.value.split(",").filter(Boolean);
  const label = form.elements.label.value.trim();
  const query = new URLSearchParams([...states.map((state) => ["state", state])]);
  if (/^[^=]+=.+/.test(label)) query.set("label", label);
  const found = [];
  let cursor = null;
  do {
    query.set("limit", Math.min(500, limit - found.length));
    if (cursor !== null) query.set("cursor", cursor);
    const answer = await askJson(`/api/v1/jobs?${query}`);
    found.push(...answer.items);
    cursor = answer.next_cursor;
  } while (cursor !== null && found.length < limit);
  jobs = found;
  more = cursor !== null;
  draw();
});

function matches(job) {
  const labels = Object.entries(job.labels).map(([key, value]) => `${key}=${value}`);
  const words = [job.id, job.name, job.owner, ...labels].join(" ").toLowerCase();
  return form.elements.text.value.toLowerCase().split(/\s+/).every((word) => words.includes(word));
}

function row(job) {
  const seen = progress.get(job.id);
  const state = job.status.state;
  const labels = Object.entries(job.labels).map(([key, value]) => h("span", { class: "label" }, `${key}=${value}`));
  const box = h("input", { type: "checkbox", "aria-label": `choose ${job.id}`, onchange: choose(job.id) });
  box.checked = chosen.has(job.id);
  return h("tr", { "data-key": job.id },
    h("td", { class: "choose" }, box),
    h("td", {}, h("a", { href: `/jobs/${job.id}` }, job.id)),
    h("td", {}, chip(state)),
    h("td", {}, told(job, seen)),
    h("td", { class: "labels" }, labels),
    h("td", {}, job.owner),
    h("td", { class: "number" }, age(since(job.created_at))));
}

function told(job, seen) {
  const state = job.status.state;
  const why = job.status.reason?.message;
  if (state === "QUEUED") return h("span", { class: "quiet" }, job.status.queue_position === null ? "" : `place ${job.status.queue_position}${why ? `: ${why}` : ""}`);
  if (seen && !TERMINAL.has(state)) return bar(seen.completed, seen.total, `${whole(seen.completed)} of ${whole(seen.total)} steps`);
  return h("span", { class: "quiet" }, why ?? (job.ended_at && job.started_at ? `in ${age((Date.parse(job.ended_at) - Date.parse(job.started_at)) / 1000)}` : ""));
}

const choose = (id) => (event) => {
  if (event.target.checked) chosen.add(id); else chosen.delete(id);
  drawChoice();
};

function drawChoice() {
  const button = $("compare");
  button.disabled = chosen.size < 2 || chosen.size > MOST;
  button.textContent = chosen.size > MOST ? `Compare (at most ${MOST})` : chosen.size ? `Compare (${chosen.size})` : "Compare";
}

function draw() {
  const seen = jobs.filter(matches);
  setRows($("rows"), seen.map(row));
  show($("empty"), seen.length === 0);
  $("empty").textContent = jobs.length === 0 && location.search === "" ? "No jobs yet. Submit one here, or with: codistill submit SPEC" : "No job is like that.";
  show($("older"), more);
  const text = `${seen.length} jobs`;
  if ($("count").textContent !== text) $("count").textContent = text;
}

let typed;
form.addEventListener("input", (event) => {
  writeAddress();
  if (event.target.name === "text") { draw(); return; }
  clearTimeout(typed);
  typed = setTimeout(load, event.target.name === "label" ? 300 : 0);
});
form.addEventListener("submit", (event) => event.preventDefault());
$("older").addEventListener("click", () => { limit += 5 * PAGE; load(); });
$("compare").addEventListener("click", () => { location.href = `/compare?${new URLSearchParams({ ids: [...chosen].join(",") })}`; });

readAddress();
await load();
setInterval(draw, 10_000);
// What the stream does not tell (labels of a new job, a change lost between two streams) comes with this.
setInterval(() => { if (!document.hidden) load(); }, 30_000);
listen("/api/v1/events", (name, data) => {
  if (name === "state") load();
  else { progress.set(data.job, data); draw(); }
}, { state: live });
