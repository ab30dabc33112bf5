// Elements, and numbers as people read them.

/** An element; attributes that are null or false are left out, `on…` are listeners, strings become text. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Puts `rows` (each with `data-key`) into `body`; rows that say the same are left alone, so that focus stays. */
export function setRows(body, rows) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const now = rows.map((row) => {
    const before = old.get(row.dataset.key);
    if (before === undefined) return row;
    if (before.isEqualNode(row)) return before;
    const focus = before.contains(document.activeElement) ? path(before, document.activeElement) : null;
    before.replaceChildren(...row.childNodes);
    for (const { name, value } of row.attributes) before.setAttribute(name, value);
    if (focus !== null) follow(before, focus)?.focus();
    return before;
  });
  now.forEach((row, index) => {
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  while (body.children.length > now.length) body.lastChild.remove();
}

function path(root, element) {
  const steps = [];
  for (; element !== root; element = element.parentNode) steps.unshift([...element.parentNode.children].indexOf(element));
  return steps;
}

const follow = (root, steps) => steps.reduce((element, index) => element?.children[index], root);

export function show(element, wanted) {
  element.hidden = !wanted;
}

/** Says what went wrong, on top of the page; nothing for null. */
export function problem(error) {
  const box = $("problem");
  const text = error === null ? "" : error instanceof TypeError ? "The service does not answer; trying again." : error.message;
  if (box.textContent !== text) box.textContent = text;
  show(box, text !== "");
}

/** Whether what is shown follows what happens. */
export function live(is, text = is ? "live" : "not connected") {
  const element = $("live");
  show(element, true);
  element.className = is ? "live on" : "live";
  if (element.textContent !== text) element.textContent = text;
}

/** Asks before something is done that cannot be undone. */
export function sure(title, text, yes) {
  $("sure-title").textContent = title;
  $("sure-text").textContent = text;
  $("sure-yes").textContent = yes;
  const dialog = $("sure");
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

export const TERMINAL = new Set(["SUCCEEDED", "FAILED", "CANCELLED"]);

export const chip = (state) => h("span", { class: `chip ${state.toLowerCase()}` }, state.toLowerCase());

export function bar(completed, total, text) {
  const share = total > 0 ? Math.min(1, completed / total) : 0;
  return h("div", { class: "bar" }, h("progress", { max: "1", value: share.toFixed(4), "aria-label": text }), h("span", {}, text));
}

const THIN = "\u202f"; // a narrow space that no line breaks at

export const whole = (value) => Math.round(value).toLocaleString("en-GB").replaceAll(",", THIN);

/** Three digits that count; whole numbers as they are. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return whole(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
  return size >= 1000 ? whole(value) : value.toPrecision(3).replace(/^(-?)0\./, "$10.");
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= size) return `${number(value / size)}${THIN}${unit}`;
  }
  return `${value}${THIN}B`;
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}${THIN}s`;
  if (s < 3600) return `${Math.floor(s / 60)}${THIN}min ${String(s % 60).padStart(2, "0")}${THIN}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}${THIN}h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")}${THIN}min`;
  return `${Math.floor(s / 86400)}${THIN}d ${Math.floor((s % 86400) / 3600)}${THIN}h`;
}

export const since = (time) => (Date.now() - Date.parse(time)) / 1000;

/** A length of time that is short enough for a table. */
export function age(seconds) {
  const s = Math.max(0, seconds);
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (s >= size) return `${Math.floor(s / size)}${THIN}${unit}`;
  }
  return `${Math.floor(s)}${THIN}s`;
}

export const clock = (time) => new Date(time).toLocaleString("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

/** Calls `work` now and whenever asked, one at a time; asked meanwhile, once more after. */
export function oneAtATime(work) {
  let running = false;
  let again = false;
  return async function run() {
    if (running) { again = true; return; }
    running = true;
    try {
      do {
        again = false;
        try {
          await work();
          problem(null);
        } catch (error) {
          problem(error);
        }
      } while (again);
    } finally {
      running = false;
    }
  };
}
