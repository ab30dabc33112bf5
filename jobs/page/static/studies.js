// Which studies there are.

import { askJson } from "./api.js";
import { $, bar, h, oneAtATime, setRows, show, whole } from "./dom.js";

const load = oneAtATime(async () => {
  const { items } = await askJson("/api/v1/studies");
  setRows($("studies"), items.map(({ name, jobs, ended }) => h("tr", { "data-key": name },
    h("td", {}, h("a", { href: `/studies/${encodeURIComponent(name)}` }, name)),
    h("td", {}, bar(ended, jobs, `${whole(ended)} of ${whole(jobs)}`)))));
  show($("none"), items.length === 0);
});

await load();
setInterval(() => { if (!document.hidden) load(); }, 10_000);
