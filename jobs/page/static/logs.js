// A log that is followed: only what is new is fetched, only the last lines are kept.

import { ask } from "./api.js";
import { $, h, oneAtATime } from "./dom.js";

const FOLLOW_MS = 1500;
const FIRST_LINES = 2000;
const MOST_LINES = 5000;

export class Log {
  constructor(job) {
    this.path = `/api/v1/jobs/${job}/logs`;
    this.box = $("log");
    this.names = "";
    this.over = false;
    this.work = oneAtATime(() => this.fetch());
    $("log-replica").addEventListener("change", () => this.restart());
    $("log-find").addEventListener("input", () => this.draw());
    $("log-follow").addEventListener("change", (event) => { if (event.target.checked) this.work(); });
    this.reset();
    setInterval(() => { if (!this.over && !document.hidden && $("log-follow").checked) this.work(); }, FOLLOW_MS);
  }

  /** The replicas that there are, and whether the job has ended. */
  show(names, over) {
    if (names.join() !== this.names) {
      this.names = names.join();
      $("log-replica").replaceChildren(...names.map((name) => h("option", {}, name)));
      this.work();
    }
    if (over && !this.over) this.work();
    this.over = over;
  }

  reset() {
    this.offset = null;
    this.lines = [""];
  }

  restart() {
    this.reset();
    this.draw();
    this.work();
  }

  async fetch() {
    const replica = $("log-replica").value;
    if (!replica) return;
    const where = this.offset === null ? { tail: FIRST_LINES } : { offset: this.offset };
    const answer = await ask(`${this.path}?${new URLSearchParams({ replica, ...where })}`, { headers: { Accept: "text/plain" } });
    const text = await answer.text();
    // Asked for before somebody chose another, or to follow no more: it will be asked for again.
    if (replica !== $("log-replica").value || (this.offset !== null && !$("log-follow").checked)) return;
    this.offset = answer.headers.get("Codistill-Next-Offset");
    if (text === "" && this.lines.length > 1) return;
    const fresh = text.split("\n");
    this.lines[this.lines.length - 1] += fresh.shift();
    this.lines.push(...fresh);
    if (this.lines.length > MOST_LINES) this.lines = this.lines.slice(-MOST_LINES);
    this.draw();
  }

  draw() {
    const wanted = $("log-find").value.toLowerCase();
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    const seen = wanted ? this.lines.filter((line) => line.toLowerCase().includes(wanted)) : this.lines;
    this.box.textContent = seen.join("\n") || (wanted ? "no line has that" : "nothing was written yet");
    if (atEnd || this.offset === null) this.box.scrollTop = this.box.scrollHeight;
  }
}
