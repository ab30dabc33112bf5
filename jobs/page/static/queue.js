// Who waits and why, who is at work, and how much room there is.

import { askJson, listen } from "./api.js";
import { $, age, bar, chip, h, live, number, oneAtATime, setRows, show, since, whole } from "./dom.js";

const WORKING = ["ADMITTED", "STARTING", "RUNNING", "RECOVERING", "CANCELLING"];
const progress = new Map();
let working = [];

const states = (wanted) => new URLSearchParams([["limit", "500"], ...wanted.map((state) => ["state", state])]);

const load = oneAtATime(async () => {
  const [queue, holding, waiting] = await Promise.all([
    askJson("/api/v1/queue"),
    askJson(`/api/v1/jobs?${states(WORKING)}`),
    askJson(`/api/v1/jobs?${states(["QUEUED"])}`),
  ]);
  const known = new Map(waiting.items.map((job) => [job.id, job]));
  const kinds = [["CPUs", "cpus"], ["GPUs", "gpus"]].filter(([, key]) => queue.total[key] > 0);
  $("room").replaceChildren(...kinds.map(([name, key]) => bar(queue.reserved[key], queue.total[key], `${number(queue.reserved[key])} of ${number(queue.total[key])} ${name} reserved`)));
  setRows($("waiting"), queue.items.map((item) => h("tr", { "data-key": item.id },
    h("td", { class: "number" }, String(item.position)),
    h("td", {}, h("a", { href: `/jobs/${item.id}` }, item.id)),
    h("td", { class: "number" }, String(item.priority)),
    h("td", {}, known.get(item.id)?.status.reason?.message ?? ""),
    h("td", { class: "number" }, known.has(item.id) ? age(since(known.get(item.id).created_at)) : "–"))));
  show($("nobody"), queue.items.length === 0);
  $("nobody").textContent = queue.waiting === 0 ? "Nobody waits." : `${whole(queue.waiting)} jobs of others wait.`;
  working = holding.items;
  draw();
});

function draw() {
  setRows($("working"), working.map((job) => {
    const seen = progress.get(job.id);
    return h("tr", { "data-key": job.id }, h("td", {}, h("a", { href: `/jobs/${job.id}` }, job.id)), h("td", {}, chip(job.status.state)),
      h("td", {}, seen ? bar(seen.completed, seen.total, `${whole(seen.completed)} of ${whole(seen.total)} steps`) : ""),
      h("td", { class: "number" }, age(since(job.started_at ?? job.updated_at))));
  }));
  show($("idle"), working.length === 0);
}

await load();
setInterval(() => { if (!document.hidden) load(); }, 10_000);
listen("/api/v1/events", (name, data) => {
  if (name === "state") load();
  else { progress.set(data.job, data); draw(); }
}, { state: live });
