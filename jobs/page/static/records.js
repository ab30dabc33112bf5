// Metrics and ledger of a job's replicas, of which only what is new is fetched.

import { rows } from "./api.js";
import { Series } from "./charts.js";

const MAX_POINTS = 2000;
// Verdicts other than "accepted": of a snapshot once, of what is too old in every step.
const KINDS = { non_finite: "quarantined", norm_out_of_bound: "quarantined", too_old: "too old" };
export const kindOf = (verdict) => KINDS[verdict] ?? "refused";

/** What one replica has written so far. */
export class Records {
  constructor(job, replica) {
    this.path = `/api/v1/jobs/${job}`;
    this.replica = replica;
    this.forget();
  }

  forget() {
    this.metrics = new Map();
    this.teachers = new Map();
    this.totals = [];
    this.thinned = { metrics: false, ledger: false };
    this.after = { metrics: -1, ledger: -1 };
    this.points = 0;
  }

  /** Fetches what has been written since; all over again, thinner, once much has gathered. */
  async fetch() {
    if (this.points > 4 * MAX_POINTS * (1 + this.metrics.size + this.teachers.size)) this.forget();
    const query = { replica: this.replica, max_points: MAX_POINTS };
    const [metrics, ledger] = await Promise.all([
      rows(`${this.path}/metrics`, query, this.after.metrics),
      rows(`${this.path}/ledger`, query, this.after.ledger),
    ]);
    for (const row of metrics.items) series(this.metrics, row.name).add(row.step, row.value);
    for (const row of ledger.items.filter((item) => item.teacher !== null)) {
      const { offset, lag, marks } = this.teacher(row.teacher);
      if (row.verdict !== "accepted") { series(marks, kindOf(row.verdict)).add(row.step, row.offset_steps); continue; }
      offset.add(row.step, row.offset_steps);
      if (row.lag_steps !== null) lag.add(row.step, row.lag_steps);
    }
    this.totals = ledger.totals;
    this.thinned.metrics ||= metrics.thinned;
    this.thinned.ledger ||= ledger.thinned;
    this.points += metrics.items.length + ledger.items.length;
    this.after = { metrics: settled(metrics.items, this.after.metrics), ledger: settled(ledger.items, this.after.ledger) };
  }

  teacher(name) {
    if (!this.teachers.has(name)) this.teachers.set(name, { offset: new Series(), lag: new Series(), marks: new Map() });
    return this.teachers.get(name);
  }

  series(name) {
    return this.metrics.get(name) ?? new Series();
  }
}

function series(map, name) {
  if (!map.has(name)) map.set(name, new Series());
  return map.get(name);
}

// The last step may not be whole yet, e.g. while its evaluation runs: it is asked for again.
const settled = (items, before) => (items.length === 0 ? before : Math.max(before, items.at(-1).step - 1));
