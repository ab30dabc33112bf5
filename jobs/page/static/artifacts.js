// What a job has left, to be saved. Where a token is needed, a link could not carry it: the file is fetched with it first.

import { ask, askJson, NEEDS_TOKEN } from "./api.js";
import { $, bytes, h, problem, setRows, show } from "./dom.js";

// Fetched files lie in the tab's memory until they are whole.
const MOST_FETCHED = 100e6;
const SHORT = 12;

export class Artifacts {
  constructor(id, path) {
    this.path = `${path}/artifacts`;
    this.seen = null;
    $("artifacts-all").textContent = `codistill export ${id}`;
  }

  /** Asks again once the job is `at` another point than when it was asked last. */
  async fetch(at) {
    if (at === this.seen) return;
    const { items } = await askJson(this.path);
    this.seen = at;
    show($("artifacts-card"), items.length > 0);
    // Models first.
    items.sort((one, other) => other.name.startsWith("export/") - one.name.startsWith("export/"));
    setRows($("artifacts"), items.map((item) => this.row(item)));
  }

  row(item) {
    return h("tr", { "data-key": item.name },
      h("td", {}, item.name),
      h("td", { class: "number" }, bytes(item.bytes)),
      h("td", {}, this.way(item)),
      h("td", {}, item.sha256 === null ? h("span", { class: "quiet" }, "–") : digest(item)));
  }

  way(item) {
    const address = `${this.path}/${item.name.split("/").map(encodeURIComponent).join("/")}`.replaceAll("'", "%27");
    if (!NEEDS_TOKEN) return h("a", { href: address, download: item.name.split("/").at(-1), "aria-label": `Download ${item.name}` }, "Download");
    if (item.bytes > MOST_FETCHED) {
      const command = `curl -fOJ -H "Authorization: Bearer $CODISTILL_TOKEN" '${location.origin}${address}'`;
      return h("details", {}, h("summary", {}, "By command"), h("code", {}, command));
    }
    return h("button", { type: "button", "aria-label": `Download ${item.name}`, onclick: (event) => save(event.target, address, item) }, "Download");
  }
}

/** The first signs; all of them on hover, and on a click, which copies them where the browser lets a page do so. */
function digest({ name, sha256 }) {
  const button = h("button", { type: "button", class: "digest", title: sha256, "aria-label": `SHA-256 of ${name}: ${sha256}; copy` }, sha256.slice(0, SHORT), "…");
  button.addEventListener("click", async () => {
    button.textContent = sha256;
    // Not there but on loopback and over TLS.
    await navigator.clipboard?.writeText(sha256).then(() => { button.textContent = "copied"; }, () => {});
  });
  button.addEventListener("blur", () => { button.textContent = `${sha256.slice(0, SHORT)}…`; });
  return button;
}

async function save(button, address, item) {
  button.disabled = true;
  try {
    const blob = await (await ask(address, { headers: { Accept: "*/*" } })).blob();
    const differs = item.sha256 !== null && crypto.subtle && item.sha256 !== await sha256(blob);
    if (differs) throw new Error(`${item.name} came with another SHA-256 than it has; try again`);
    const link = h("a", { href: URL.createObjectURL(blob), download: item.name.split("/").at(-1) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    problem(null);
  } catch (error) {
    problem(error);
  } finally {
    button.disabled = false;
  }
}

async function sha256(blob) {
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  return [...found].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
