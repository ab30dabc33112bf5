// What can be done with a job: compare, cancel, delete, and go on from it as a new one.

import { ask, askJson, newKey, pause, Problem } from "./api.js";
import { $, h, problem, show, sure, TERMINAL } from "./dom.js";
import { price } from "./price.js";

const WAIT_MS = 400;
const WAYS = {
  resume: { title: "Resume", text: "The same training goes on from the newest checkpoints, as a new job." },
  fork: { title: "Fork", text: "Another training begins from the newest checkpoints, as a new job." },
};

export class Actions {
  /** `changed()` is called once the job is another than it was. */
  constructor(id, path, changed) {
    Object.assign(this, { id, path, changed, way: null, round: 0, key: "" });
    $("go-on-changes").addEventListener("input", () => this.check());
    $("go-on-yes").addEventListener("click", () => this.goOn());
    $("go-on").addEventListener("close", () => { this.round += 1; });
  }

  draw(state) {
    const wanted = TERMINAL.has(state) ? state : state === "CANCELLING" ? "cancelling" : "cancel";
    if ($("actions").dataset.wanted === wanted) return;
    $("actions").dataset.wanted = wanted;
    const after = {
      cancel: [h("button", { class: "danger", onclick: () => this.cancel() }, "Cancel")],
      cancelling: [h("button", { class: "danger", disabled: true }, "Cancelling…")],
    }[wanted] ?? [
      ...Object.entries(WAYS).map(([way, { title }]) => h("button", { onclick: () => this.ask(way, state) }, title)),
      h("button", { class: "danger", onclick: () => this.remove() }, "Delete"),
    ];
    $("actions").replaceChildren(h("a", { class: "button", href: `/compare?${new URLSearchParams({ ids: this.id })}` }, "Compare"), ...after);
  }

  async cancel() {
    if (!await sure("Cancel this job?", "Its replicas write a last checkpoint and end.", "Cancel the job")) return;
    try {
      await ask(`${this.path}/cancel`, { method: "POST" });
    } catch (error) { problem(error); return; }
    this.changed();
  }

  async remove() {
    if (!await sure("Delete this job?", "Its metrics, logs, checkpoints and models are removed from the disk.", "Delete the job")) return;
    try {
      await ask(this.path, { method: "DELETE" });
      location.href = "/";
    } catch (error) { problem(error); }
  }

  // ---- as a new job

  ask(way, state) {
    this.way = way;
    const more = way === "resume" && state === "SUCCEEDED" ? ' This one has made all its steps: more need {"training": {"steps": …}}.' : "";
    $("go-on-title").textContent = `${WAYS[way].title} ${this.id}`;
    $("go-on-text").textContent = WAYS[way].text + more;
    $("go-on-yes").textContent = WAYS[way].title;
    for (const other of Object.keys(WAYS)) { show($(`may-${other}`), other === way); $(`may-${other}`).open = false; }
    $("go-on-changes").value = "{}";
    this.says("", "");
    $("go-on").showModal();
    this.check();
  }

  /** What was typed, as it was typed: reading and writing it anew would round large numbers. Throws where it is no JSON. */
  body() {
    const text = $("go-on-changes").value.trim() || "{}";
    JSON.parse(text);
    return `{"changes": ${text}}`;
  }

  /** Asks the service what it would say, once nothing has been typed for a moment. */
  async check() {
    const mine = ++this.round;
    this.key = newKey();
    $("go-on-yes").disabled = true;
    await pause(WAIT_MS);
    if (mine !== this.round) return;
    try {
      const { spec, estimate } = await askJson(`${this.path}/${this.way}:validate`, { method: "POST", body: this.body() });
      if (mine !== this.round) return;
      this.says("good", `This can run, as ${spec.name}: ${spec.replicas.count} × ${spec.training.steps} steps in all.`);
      $("go-on-price").replaceChildren(...price(estimate));
      $("go-on-yes").disabled = false;
    } catch (error) { if (mine === this.round) this.refused(error); }
  }

  async goOn() {
    $("go-on-yes").disabled = true;
    try {
      const child = await askJson(`${this.path}/${this.way}`, { method: "POST", body: this.body(), headers: { "Idempotency-Key": this.key } });
      location.href = `/jobs/${child.id}`;
    } catch (error) {
      this.refused(error);
      $("go-on-yes").disabled = false;
    }
  }

  refused(error) {
    const message = error instanceof SyntaxError ? `This is no JSON: ${error.message}` : error.message;
    const errors = error instanceof Problem && error.errors.length ? error.errors : [{ path: "", message, allowed: [] }];
    this.says("bad", h("ul", {}, ...errors.map(({ path, message: text, allowed }) => {
      // What may change stands below.
      const list = allowed.join(", ");
      const short = list && list === this.may() && text.endsWith(list) ? `${text.slice(0, -list.length)}what is listed below` : text;
      if (short !== text) $(`may-${this.way}`).open = true;
      return h("li", {}, path ? h("code", {}, path) : null, path ? " " : "", short);
    })));
  }

  /** What the form lists. */
  may() {
    return [...$(`may-${this.way}`).querySelectorAll("code")].map((key) => key.textContent).join(", ");
  }

  says(kind, what) {
    $("go-on-says").className = `verdict ${kind}`;
    $("go-on-says").replaceChildren(what);
    $("go-on-price").replaceChildren();
    if (kind === "bad") $("go-on-changes").setAttribute("aria-invalid", "true"); else $("go-on-changes").removeAttribute("aria-invalid");
  }
}
