// Histograms as SVG: bars, a zero line, three labelled ticks on each axis, and the unit of both.

const FRAME = {width: 350, height: 180, left: 44, right: 12, top: 24, bottom: 40};

// Round steps for an axis that ends at `most`.
function ticks(most, about = 3) {
  const raw = most / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find(one => one * power >= raw * 0.99) ?? 10);
  return Array.from({length: Math.floor(most / step + 1e-9) + 1}, (_, i) => i * step);
}

// counts[i] stands between edges[i] and edges[i + 1]; `marks` are [value, label] on the horizontal axis.
function histogram({counts, edges, marks, unit, what, label}) {
  const {width, height, left, right, top, bottom} = FRAME;
  const low = edges[0], high = edges[edges.length - 1], most = Math.max(...counts, 1);
  const x = value => left + (value - low) / (high - low) * (width - left - right);
  const y = value => height - bottom - value / most * (height - top - bottom);
  const levels = ticks(most).filter(level => Number.isInteger(level));
  return s("svg", {class: "figure", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label},
    levels.map(level => [
      s("line", {x1: left, x2: width - right, y1: y(level), y2: y(level)}),
      s("text", {x: left - 6, y: y(level) + 3.5, "text-anchor": "end"}, bare(level))]),
    s("g", {class: "bars"}, counts.map((count, i) => count > 0 && s("rect", {
      x: x(edges[i]) + .5, width: Math.max(x(edges[i + 1]) - x(edges[i]) - 1, .5),
      y: Math.min(y(count), y(0) - 1), height: Math.max(y(0) - y(count), 1)},
    s("title", null, `${short(edges[i])} to ${short(edges[i + 1])}: ${plural(count, what.one, what.many)}`)))),
    s("line", {class: "axis", x1: left, x2: width - right, y1: y(0), y2: y(0)}),
    marks.map(([value, text]) => [
      s("line", {class: "axis", x1: x(value), x2: x(value), y1: y(0), y2: y(0) + 4}),
      s("text", {x: x(value), y: y(0) + 15, "text-anchor": value === high ? "end" : value === low ? "start" : "middle"}, text)]),
    s("text", {x: (left + width - right) / 2, y: height - 7, "text-anchor": "middle"}, unit),
    s("text", {x: left - 40, y: 10}, what.many));
}

function activationHistogram(latent) {
  const bins = latent.histogram.length;
  const edges = Array.from({length: bins + 1}, (_, i) => latent.low + (latent.high - latent.low) * i / bins);
  const marks = ticks(latent.high, 4).map(value => [value, bare(value)]);
  if (latent.low < 0) marks.unshift([latent.low, short(latent.low)]);
  const label = `Histogram of ${plural(latent.fired, "activation")} other than 0, from ${short(latent.low)} to `
    + `${short(latent.high)}, mean ${short(latent.mean)}.`;
  return histogram({counts: latent.histogram, edges, marks, unit: "activation (units of the SAE)",
    what: {one: DATA.unit, many: DATA.unit + "s"}, label});
}

function densityHistogram(one) {
  const first = Math.max(one.counts.findIndex(count => count > 0), 0);  // bins of rarer features are left out
  const edges = one.log10_edges.slice(first), counts = one.counts.slice(first);
  const marks = edges.filter(Number.isInteger).map(edge => [edge, bare(100 * 10 ** edge) + " %"]);
  const alive = one.all - one.dead;
  const label = `Histogram of ${whole(alive)} ${one.kind} by how often they fire; ${whole(one.dead)} never fired.`;
  const svg = histogram({counts, edges, marks, unit: `fires on this part of the ${DATA.unit}s (log scale)`,
    what: {one: one.kind.slice(0, -1), many: one.kind}, label});
  svg.querySelectorAll("title").forEach((title, i) => {
    const bin = counts.map((count, at) => [count, at]).filter(([count]) => count > 0)[i][1];
    title.textContent = `${percent(10 ** edges[bin])} to ${percent(10 ** edges[bin + 1])}: ${whole(counts[bin])}`;
  });
  return svg;
}
