// A line over the last minutes, drawn as a few paths: the theme colours them.

import { el, svg } from "./dom.js";

const WIDTH = 180; // one unit is a second
const HEIGHT = 60;
const TOP = 4;
const BOTTOM = HEIGHT - 2;

// The least round number that is not below `value`.
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const scale = 10 ** Math.floor(Math.log10(value));
  return scale * [1, 1.5, 2, 3, 4, 6, 8, 10].find((step) => step * scale >= value * 0.999);
}

export function key(name, value, label) {
  return el("span", { class: `key ${name}` }, value, ` ${label}`);
}

export class Chart {
  // series: [{label, value: (sample) => number | null}]; format: of a value, as text.
  constructor({ title, series, format, highest = null, hasArea = false, className = "" }, onpoint) {
    this.series = series;
    this.format = format;
    this.highest = highest;
    this.hasArea = hasArea;
    this.values = series.map(() => el("b", {}, "–"));
    this.area = svg("path", { class: "area" });
    this.lines = series.map((_, i) => svg("path", { class: `line line-${i}` }));
    this.dots = series.map((_, i) => svg("path", { class: `line dots line-${i}` }));
    this.cursor = svg("path", { class: "cursor" });
    this.limit = el("span", { class: "limit" });
    const plot = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "grid", d: `M0 ${TOP}H${WIDTH}M0 ${BOTTOM}H${WIDTH}` }),
      this.area,
      ...this.lines.toReversed(),
      ...this.dots.toReversed(),
      this.cursor,
    );
    plot.addEventListener("pointermove", (event) => {
      const { left, width } = plot.getBoundingClientRect();
      onpoint(Math.round(WIDTH - ((event.clientX - left) / width) * WIDTH));
    });
    plot.addEventListener("pointerleave", () => onpoint(null));
    const legend = series.map(({ label }, i) => key(`key-${i}`, this.values[i], label));
    this.node = el(
      "figure",
      { class: `chart ${className}` },
      el("figcaption", {}, el("span", {}, title), this.limit),
      el("p", {}, ...legend),
      plot,
    );
  }

  // `now`: the second at the right edge.
  draw(samples, now) {
    const columns = this.series.map(({ value }) => samples.map(value));
    const most = Math.max(0, ...columns.flat().filter((value) => value !== null));
    const top = this.highest ?? ceiling(most);
    this.limit.textContent = this.format(top);
    const xs = samples.map((sample) => WIDTH - (now - sample.time));
    columns.forEach((column, i) => {
      const place = (value, at) => (value === null ? null : `${xs[at]} ${height(value, top)}`);
      const points = column.map(place);
      const lone = points.filter((point, at) => point && !points[at - 1] && !points[at + 1]);
      this.lines[i].setAttribute("d", linePath(points));
      this.dots[i].setAttribute("d", lone.map((point) => `M${point}h.01`).join(""));
    });
    if (this.hasArea) this.area.setAttribute("d", areaPath(xs, columns[0], top));
  }

  show(values) {
    values.forEach((value, i) => {
      this.values[i].textContent = value === null || value === undefined ? "–" : this.format(value);
    });
  }

  // The values of `sample`, `age` seconds before the right edge; null: none is pointed at.
  point(sample, age) {
    this.cursor.setAttribute("d", age === null ? "" : `M${WIDTH - age} 0V${HEIGHT}`);
    if (sample) this.show(this.series.map(({ value }) => value(sample)));
  }
}

function height(value, top) {
  return (BOTTOM - (BOTTOM - TOP) * Math.min(value / top, 1)).toFixed(1);
}

// A second without a value breaks the line.
function linePath(points) {
  return points.map((point, at) => (point ? (points[at - 1] ? "L" : "M") + point : "")).join("");
}

function areaPath(xs, column, top) {
  const shown = xs.map((x, i) => [x, column[i] ?? 0]);
  if (!shown.length) return "";
  const points = shown.map(([x, value]) => `${x} ${height(value, top)}`).join("L");
  return `M${shown[0][0]} ${BOTTOM}L${points}L${shown.at(-1)[0]} ${BOTTOM}Z`;
}
