// Elements and numbers. Text is only ever set as text: no string of the data is parsed as markup.

const SVG = document.getElementById("ns").namespaceURI;

function build(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {}))
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

// Three significant digits; no exponent for what people can read without one.
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 1e-4) return value.toExponential(1);
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
}
// Without trailing zeros, for axes.
const bare = value => short(value).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
const whole = value => value.toLocaleString("en");
const percent = fraction => !Number.isFinite(fraction) ? "n/a" : (fraction * 100 >= 99.95 ? "100" : short(fraction * 100)) + " %";
const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many ?? one + "s"}`;
const token = piece => h("code", {class: "tok"}, DATA.pieces[piece]);
const cell = (...children) => h("td", null, ...children);
const number = (text, title) => h("td", {class: "n", title}, text);
const head = (...titles) => h("thead", null, h("tr", null, titles.map(([text, kind]) => h("th", {scope: "col", class: kind}, text))));
