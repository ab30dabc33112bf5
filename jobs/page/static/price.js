// What a job will take, and beside it what it took.

import { bytes, duration, h, number, whole } from "./dom.js";

const THIN = "\u202f";
const DASH = "–";

const perStep = (seconds) => (seconds < 1 ? `${number(seconds * 1000)}${THIN}ms` : `${number(seconds)}${THIN}s`);

function spread({ low, median, high }, words) {
  return low === high ? words(median) : `${words(median)} (${words(low)} to ${words(high)})`;
}

/** Of what is told of speed on several kinds of hardware, that of the one which was used, or of the most runs. */
function speedOf(estimate, took) {
  const found = estimate.speeds.find((speed) => speed.hardware === took?.hardware);
  return found ?? estimate.speeds.toSorted((a, b) => b.runs - a.runs)[0] ?? null;
}

/** Rows of [what, told, took]; told is null where it is not known. */
function lines(estimate, took) {
  const speed = speedOf(estimate, took);
  const told = (value, words) => (value === null || value === undefined ? null : words(value));
  const rows = [
    ["Whole time", told(speed?.seconds, (value) => spread(value, duration)), told(took?.seconds, duration)],
    ["A step", told(speed?.step_s, (value) => spread(value, perStep)), told(took?.step_s, perStep)],
    ["Tensors of a rank", told(estimate.memory_bytes_per_rank, bytes), told(took?.memory_bytes_per_rank, bytes)],
    ["Process of a rank", told(speed?.process_bytes_per_rank, bytes), told(took?.process_bytes_per_rank, bytes)],
    ["Received by all replicas", told(estimate.bytes_received, bytes), told(took?.bytes_received, bytes)],
  ];
  if (estimate.controls_steps > 0) {
    const more = speed === null ? "" : `, ${spread(speed.controls_seconds, duration)}`;
    rows.push(["Of the time, controls", `${whole(estimate.controls_steps)} steps a replica${more}`, null]);
  }
  return rows;
}

/** On what the seconds stand, and what is not known. */
function notes(estimate, took) {
  const speed = speedOf(estimate, took);
  const from = speed === null ? [] : [`Time: from ${speed.runs} job${speed.runs === 1 ? "" : "s"} like it on ${speed.hardware ?? "unknown hardware"}.`];
  return [...from, ...estimate.unknown.map((why) => `Not known: ${why}.`)];
}

/** A table; with `took` null, without the column of what it came to. */
export function price(estimate, took = null) {
  const head = ["", "Estimate", ...(took ? ["Took"] : [])];
  const rows = lines(estimate, took).map(([what, told, came]) => h("tr", {}, h("th", { scope: "row" }, what), h("td", { class: "number" }, told ?? DASH),
    took ? h("td", { class: "number" }, came ?? DASH) : null));
  return [
    h("div", { class: "scroll" }, h("table", { class: "price" }, h("caption", { class: "unseen" }, "What the job takes"),
      h("thead", {}, h("tr", {}, ...head.map((text) => h("th", text ? { class: "number", scope: "col" } : {}, text || h("span", { class: "unseen" }, "What"))))), h("tbody", {}, ...rows))),
    ...notes(estimate, took).map((text) => h("p", { class: "hint" }, text)),
  ];
}
