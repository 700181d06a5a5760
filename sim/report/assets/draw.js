// Elements, numbers as people read them, ticks and scales. It knows no kind of plot.
const SVG = "http://www.w3.org/2000/svg";
const PAD = { left: 58, right: 16, top: 22, bottom: 38 };
const specs = JSON.parse(document.getElementById("data").textContent);
const zooms = {}; // by name: plots that zoom together, those over time among them
const groups = {}; // by name: plots that share a legend, and stacks that share a scale
const redraws = []; // of figures that are no Plot
const TONES = 8, PATTERNS = 4;

function make(name, attributes = {}, parent = null, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function html(name, className, parent, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

// How a series looks: by its kind, else by its place. Neighbours differ in colour and in how their lines are dashed,
// so that they are told apart without colours too, and no two of the first 32 are alike.
function tone({ kind, place }, index) {
  return kind ? "kind-" + kind : `c${(place ?? index) % TONES} d${pattern({ kind, place }, index)}`;
}

function pattern({ kind, place }, index) {
  const at = place ?? index;
  return kind ? 0 : (at + Math.floor(at / TONES)) % PATTERNS;
}

// A point of a series: disc, square, triangle or diamond, by its pattern.
function marker(layer, shape, className, x, y, r) {
  if (!shape) return make("circle", { class: className, cx: x.toFixed(1), cy: y.toFixed(1), r }, layer);
  const corners = [
    [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]], [[0, -1.25], [1.15, 0.85], [-1.15, 0.85]], [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
  ][shape - 1];
  const d = "M" + corners.map(([across, down]) => (x + r * across).toFixed(1) + " " + (y + r * down).toFixed(1)).join("L") + "Z";
  return make("path", { class: className, d }, layer);
}

// The sign of a series before its name in a legend: its area, its line, its point or both.
function sign(button, { kind, joined }, item, index) {
  const svg = make("svg", { class: "sign", width: 22, height: 10, "aria-hidden": "true" });
  const look = tone(item, index), points = kind === "xy" || kind === "scatter";
  if (kind === "stack" || kind === "bars") make("rect", { class: "area " + look, x: 6, width: 10, height: 10, rx: 3 }, svg);
  else if (item.front) marker(svg, 0, "front-sign", 11, 5, 4);
  else if (!points || joined) make("line", { class: "line " + look, x1: 0, x2: 22, y1: 5, y2: 5 }, svg);
  if (points && !item.front) marker(svg, pattern(item, index), "point " + look, 11, 5, 3.6);
  button.prepend(svg);
}

const digits = (value, most) => value.toLocaleString("en-US", { maximumSignificantDigits: most });
const exact = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : digits(value, 3));
const withUnit = (value, unit) => exact(value) + (unit ? " " + unit : "");

const percent = (share) => (share > 0 && share < 0.05 ? "<0.1" : +share.toFixed(1)) + " %";

function tickText(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return digits(value / 1e6, 4) + "M";
  return size >= 1e4 ? digits(value / 1e3, 4) + "k" : digits(value, 4);
}

function linearTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => power * factor >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function logTicks(low, high, wanted) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks(low, high, wanted);
  const factors = decades > wanted * 0.7 ? [1] : decades > wanted * 0.35 ? [1, 3] : [1, 2, 5];
  const every = Math.max(1, Math.ceil(decades / wanted));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    if (power % every) continue;
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  }
  return found;
}

// A scale maps values to pixels, and back with .invert.
function scale(low, high, from, to, log) {
  const f = log ? Math.log : (value) => value;
  const g = log ? Math.exp : (value) => value;
  const [a, b] = [f(low), f(high)];
  const map = (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
  map.invert = (pixel) => g(a + ((pixel - from) / (to - from)) * (b - a));
  return map;
}
