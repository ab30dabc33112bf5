// Who taught whom: a graph of few replicas, a table of all; and how much they disagree in the end.

import { bytes, h, number, svg, whole } from "./dom.js";

const MOST_DRAWN = 8;
const SIZE = 260;

/** `edges` are {from, to, rows, bytes, refused}; `names` are in the order of their colours. */
export function drawPeers(box, names, edges) {
  const heard = edges.filter((edge) => edge.rows > 0 || edge.refused > 0);
  box.hidden = heard.length === 0;
  if (box.hidden) return;
  const head = h("tr", {}, ...["Teacher", "Taught"].map((text) => h("th", {}, text)), ...["Steps", "Received", "Refused"].map((text) => h("th", { class: "number" }, text)));
  const body = heard.map((edge) => h("tr", {}, h("td", {}, edge.from), h("td", {}, edge.to),
    ...[whole(edge.rows), bytes(edge.bytes), whole(edge.refused)].map((text) => h("td", { class: "number" }, text))));
  box.replaceChildren(
    h("h2", { id: "peers-title" }, "Who taught whom"),
    h("p", { class: "hint" }, names.length > MOST_DRAWN ? "" : "The wider an arrow, the more steps; it points at the replica that learned."),
    h("div", { class: "pair" }, names.length > MOST_DRAWN ? "" : graph(names, heard),
      h("div", { class: "scroll" }, h("table", {}, h("caption", { class: "unseen" }, "Steps in which each teacher was heard"), h("thead", {}, head), h("tbody", {}, ...body)))));
}

function graph(names, edges) {
  const middle = SIZE / 2;
  const radius = middle - 52;
  const at = names.map((_, i) => {
    const turn = (2 * Math.PI * i) / names.length - (names.length === 2 ? Math.PI : Math.PI / 2);
    return [middle + radius * Math.cos(turn), middle + radius * Math.sin(turn)];
  });
  const most = Math.max(1, ...edges.map((edge) => edge.rows));
  const arrows = edges.filter((edge) => edge.rows > 0).map((edge) => {
    const [from, to] = [names.indexOf(edge.from), names.indexOf(edge.to)];
    return from < 0 || to < 0 ? null : arrow(at[from], at[to], 1.5 + (3.5 * edge.rows) / most, from, `${edge.from} taught ${edge.to} in ${edge.rows} steps`);
  });
  const nodes = names.map((name, i) => svg("g", {},
    svg("circle", { cx: at[i][0], cy: at[i][1], r: 19, class: `node series-${i % 8}` }),
    svg("text", { x: at[i][0], y: at[i][1] + 5, class: "node-text" }, name.split("-").at(-1))));
  const height = names.length === 2 ? 130 : SIZE;
  return svg("svg", { viewBox: `0 ${(SIZE - height) / 2} ${SIZE} ${height}`, class: "graph", role: "img", "aria-label": "Graph of who taught whom; the table beside it holds the numbers" }, ...arrows, ...nodes);
}

function arrow([x0, y0], [x1, y1], width, from, title) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  const [ux, uy] = [(x1 - x0) / length, (y1 - y0) / length];
  const bend = length * 0.16;
  const [mx, my] = [(x0 + x1) / 2 - uy * bend, (y0 + y1) / 2 + ux * bend];
  const tip = [x1 - ux * 23 - uy * 6, y1 - uy * 23 + ux * 6];
  const [hx, hy] = [tip[0] - mx, tip[1] - my].map((part) => part / Math.hypot(tip[0] - mx, tip[1] - my));
  const wing = 4 + width;
  const back = [tip[0] - hx * wing * 1.6, tip[1] - hy * wing * 1.6];
  const head = [tip, [back[0] - hy * wing * 0.7, back[1] + hx * wing * 0.7], [back[0] + hy * wing * 0.7, back[1] - hx * wing * 0.7]];
  return svg("g", { class: `edge series-${from % 8}` }, svg("title", {}, title),
    svg("path", { d: `M${x0 + ux * 21} ${y0 + uy * 21} Q${mx} ${my} ${back[0]} ${back[1]}`, "stroke-width": width.toFixed(1) }),
    svg("polygon", { points: head.map((point) => point.map((part) => part.toFixed(1)).join(",")).join(" ") }));
}

/** Of `value`, as `/disagreement` tells it; null while the job's `count` replicas train. */
export function drawDisagreement(box, value, count) {
  box.hidden = count < 2;
  if (box.hidden) return;
  const title = h("h2", { id: "disagreement-title" }, "Disagreement");
  if (value === null || value.replicas.length < 2) {
    const text = value === null ? "Known once the replicas have ended and predicted the test set." : "Not known: fewer than two replicas have written down what they predict.";
    box.replaceChildren(title, h("p", { class: "hint" }, text));
    return;
  }
  const pairs = value.flips.flatMap((row, i) => row.slice(i + 1));
  const mean = pairs.reduce((sum, share) => sum + share, 0) / pairs.length;
  const most = Math.max(1e-9, ...pairs);
  const cell = (share, i, j) => h("td", { class: `number heat heat-${i === j ? 0 : Math.ceil((4 * share) / most)}` }, i === j ? "·" : `${number(100 * share)} %`);
  box.replaceChildren(
    title,
    h("p", { class: "hint" }, `Share of test samples for which two replicas name different classes; ${number(100 * mean)}\u202f% in the mean.`),
    h("div", { class: "scroll" }, h("table", { class: "matrix" },
      h("caption", { class: "unseen" }, "Share of test samples on which each pair of replicas disagrees"),
      h("thead", {}, h("tr", {}, h("td", {}), ...value.replicas.map((name) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, ...value.flips.map((row, i) => h("tr", {}, h("th", { scope: "row" }, value.replicas[i]), ...row.map((share, j) => cell(share, i, j))))))));
}
