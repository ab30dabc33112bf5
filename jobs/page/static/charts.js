// Line charts (uPlot) with a table of the same numbers beside each.

import { h, number, whole } from "./dom.js";

const TABLE_ROWS = 40;
// A limit further up than this many times the height of all lines would press them to the ground.
const NEAR = 2;
const SIGNS = { refused: "✕", quarantined: "◆", "too old": "•" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const all = new Set();
dark.addEventListener("change", () => all.forEach((chart) => chart.rebuild()));

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colour of replica, teacher or job number `index`. */
export const colour = (index) => css(`--series-${index % 8}`);

/** A curve that grows: steps ascending, each once; what comes again for a step replaces it. */
export class Series {
  constructor() {
    this.steps = [];
    this.values = [];
  }

  add(step, value) {
    const last = this.steps.length - 1;
    if (last < 0 || step > this.steps[last]) {
      this.steps.push(step);
      this.values.push(value);
    } else {
      const at = this.steps.lastIndexOf(step);
      if (at >= 0) this.values[at] = value;
    }
  }

  get last() {
    return this.values.at(-1) ?? null;
  }
}

/**
 * A chart of some height. `draw(lines)` takes lines `{label, index, series, dash}`; those that are empty are left out, and
 * the whole chart is hidden while there is none. With `mark` a line is points, with a sign each and `count` in the legend.
 * `limits` are `{name, value, dash}`, lines across. `log` is true or false where a log scale may be chosen, and says
 * whether it is at first; `end` is the last step that there will be.
 */
export class Chart {
  constructor(parent, { title, hint = "", unit = "", height = 220, log = null, smooth = false, sync = null, x = "step" }) {
    Object.assign(this, { unit, height, sync, x, lines: [], limits: [], plot: null, key: "", end: null });
    this.hint = hint;
    const id = `chart-${all.size}`;
    this.log = h("input", { type: "checkbox", onchange: () => this.rebuild() });
    this.log.checked = log === true;
    this.smooth = h("input", { type: "checkbox", onchange: () => this.rebuild() });
    this.controls = h("div", { class: "inline" }, smooth ? h("label", { class: "check" }, this.smooth, " smooth") : null,
      log === null ? null : h("label", { class: "check" }, this.log, " log scale"));
    this.title = h("h2", { id }, title);
    this.words = h("p", { class: "hint" }, hint);
    this.legend = h("ul", { class: "legend" });
    this.canvas = h("div", { class: "plot", role: "img", "aria-label": `${title}; the table below holds the numbers` });
    this.beside = h("div", {});
    this.table = h("details", { class: "numbers", ontoggle: () => this.tabulate() }, h("summary", {}, "Table"), this.beside, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Numbers: ${title}` }));
    this.box = h("section", { class: "card chart", "aria-labelledby": id },
      h("div", { class: "heading small" }, this.title, this.controls),
      this.words, this.legend, this.canvas, this.table);
    this.box.hidden = true;
    parent.append(this.box);
    all.add(this);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  draw(lines, thinned = false, limits = []) {
    this.lines = lines.filter((line) => line.series.steps.length > 0);
    this.box.hidden = this.lines.length === 0;
    if (this.box.hidden) return;
    const [low, high] = [Math.min, Math.max].map((pick) => this.lines.reduce((found, { series }) => series.values.reduce((a, b) => pick(a, b), found), 0));
    this.limits = limits.filter(({ value }) => value <= high + NEAR * (high - low));
    const told = limits.map((limit) => `${limit.name} is ${whole(limit.value)}${this.limits.includes(limit) ? "" : ", far above"}.`);
    this.words.textContent = [this.hint, ...told, thinned ? "Thinned: extremes are kept." : ""].filter(Boolean).join(" ");
    this.words.hidden = this.words.textContent === "";
    const key = JSON.stringify([this.limits, this.lines.map(({ label, index, dash }) => [label, index, dash])]);
    if (this.plot === null || key !== this.key) {
      this.key = key;
      this.rebuild();
    } else {
      this.plot.setData(this.joined());
      this.told(this.plot.cursor.idx);
    }
    if (this.table.open) this.tabulate();
  }

  joined() {
    if (this.lines.length === 1) return [this.lines[0].series.steps, this.shown(this.lines[0].series.values)];
    return uPlot.join(this.lines.map(({ series }) => [series.steps, this.shown(series.values)]));
  }

  shown(values) {
    const drawn = this.smooth.checked ? smoothed(values) : values;
    // On a log scale nothing is at zero.
    return this.log.checked ? drawn.map((value) => (value > 0 ? value : null)) : drawn;
  }

  rebuild() {
    if (this.lines.length === 0) return;
    this.plot?.destroy();
    const line = css("--line");
    const text = css("--quiet");
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: text, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
    const options = {
      width: Math.max(200, this.canvas.clientWidth),
      height: this.height,
      padding: [8, 22, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, ...(this.sync ? { sync: { key: this.sync } } : {}) },
      scales: { x: { time: false, range: (_, low, high) => (this.end === null ? [low ?? 0, high ?? 1] : [0, Math.max(this.end, high ?? 0)]) }, y: { distr: this.log.checked ? 3 : 1, range: this.log.checked ? undefined : (_, low, high) => this.around(low, high) } },
      axes: [
        { ...axis, size: 28, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? whole(tick) : "")) },
        { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.tick(tick))) },
      ],
      series: [{}, ...this.lines.map(({ label, index, dash, mark }) => ({
        label, stroke: colour(index), width: 1.6, dash: dash ?? [], spanGaps: true, points: { show: (plot, i) => !mark && plot.data[i].length < 2 }, ...(mark ? { paths: () => null } : {}),
      }))],
      hooks: { setCursor: [(plot) => this.told(plot.cursor.idx)], draw: [(plot) => this.drawOver(plot)] },
    };
    this.plot = new uPlot(options, this.joined(), this.canvas);
    this.label();
  }

  around(low, high) {
    const limits = this.limits.map(({ value }) => value);
    return low === null ? [0, 1] : padded(Math.min(low, ...limits), Math.max(high, ...limits));
  }

  /** Limits and signs, over the lines. */
  drawOver(plot) {
    const { ctx, bbox } = plot;
    const scale = uPlot.pxRatio;
    ctx.save();
    ctx.lineWidth = scale;
    ctx.strokeStyle = ctx.fillStyle = css("--bad");
    ctx.font = `${11 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    for (const { name, value, dash } of this.limits) {
      const y = Math.round(plot.valToPos(value, "y", true)) + 0.5;
      const above = y - bbox.top > 16 * scale;
      ctx.setLineDash(dash.map((part) => part * scale));
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.textBaseline = above ? "bottom" : "top";
      ctx.fillText(name, bbox.left + bbox.width - 4 * scale, y + (above ? -2 : 3) * scale);
    }
    ctx.font = `bold ${15 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.setLineDash([]);
    ctx.lineWidth = 3 * scale;
    ctx.strokeStyle = css("--card");
    this.lines.forEach(({ mark, index }, i) => {
      if (!mark) return;
      ctx.fillStyle = colour(index);
      plot.data[i + 1].forEach((value, at) => {
        if (value === null || value === undefined) return;
        const [x, y] = [plot.valToPos(plot.data[0][at], "x", true), plot.valToPos(value, "y", true)];
        if (mark === "too old") { ctx.fillRect(x - scale, y - scale, 2 * scale, 2 * scale); return; }
        ctx.strokeText(SIGNS[mark], x, y);
        ctx.fillText(SIGNS[mark], x, y);
      });
    });
    ctx.restore();
  }

  tick(value) {
    if (this.unit === "bytes") return value >= 1e6 ? `${number(value / 1e6)} MB` : value >= 1e3 ? `${number(value / 1e3)} kB` : number(value);
    return Math.abs(value) >= 1e4 ? value.toExponential(0).replace("e+", "e") : String(Number(value.toPrecision(4)));
  }

  label() {
    this.values = this.lines.map(() => h("b", {}));
    this.legend.replaceChildren(...this.lines.map(({ label, index, dash, mark }, i) => h("li", {}, h("i", { class: `${mark ? "sign" : "key"} series-${index % 8}${dash ? " dashed" : ""}` }, mark ? SIGNS[mark] : null), label, " ", this.values[i])));
    this.told(null);
  }

  /** The values under the cursor, or the last ones; of marks, how many there are. */
  told(index) {
    if (this.values?.length !== this.lines.length) return;
    this.lines.forEach(({ series, mark, count }, i) => {
      const value = mark ? count : index === null || index === undefined ? series.last : this.plot.data[i + 1][index];
      const text = this.text(value);
      if (this.values[i].textContent !== text) this.values[i].textContent = text;
    });
  }

  text(value) {
    return value === null || value === undefined ? "–" : this.unit === "bytes" ? this.tick(value) : number(value);
  }

  resize() {
    if (this.plot && this.canvas.clientWidth > 0 && Math.abs(this.plot.width - this.canvas.clientWidth) > 1) {
      this.plot.setSize({ width: this.canvas.clientWidth, height: this.height });
    }
  }

  tabulate() {
    if (!this.table.open) return;
    const [steps, ...columns] = this.joined();
    const stride = Math.max(1, Math.ceil(steps.length / TABLE_ROWS));
    const rare = columns.filter((_, line) => ["refused", "quarantined"].includes(this.lines[line].mark));
    const even = (i) => (steps.length - 1 - i) % stride === 0;
    const found = [...steps.keys()].filter((i) => even(i) || rare.some((column) => typeof column[i] === "number"));
    const picked = found.length > 4 * TABLE_ROWS ? found.filter(even) : found;
    const head = h("thead", {}, h("tr", {}, h("th", { class: "number" }, this.x), ...this.lines.map(({ label }) => h("th", { class: "number" }, label))));
    const body = picked.map((i) => h("tr", {}, h("td", { class: "number" }, whole(steps[i])), ...columns.map((column) => h("td", { class: "number" }, this.text(column[i])))));
    const caption = h("caption", {}, `${picked.length} of ${whole(steps.length)} steps`);
    this.table.lastChild.replaceChildren(h("table", {}, caption, head, h("tbody", {}, ...body)));
  }
}

/** An exponential mean over about a fiftieth of the points; what is no number is left out. */
function smoothed(values) {
  const share = Math.min(1, 50 / values.length);
  let mean = null;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean === null ? value : mean + share * (value - mean);
    return mean;
  });
}

function padded(low, high) {
  if (low === high && low > 0) return [0, 1.1 * high];
  const space = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 ? Math.max(0, low - space) : low - space, high + space];
}
