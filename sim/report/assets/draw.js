// Elements, numbers as people read them, ticks and scales. It knows no kind of plot.
const SVG = "http://www.w3.org/2000/svg";
const PAD = { left: 58, right: 16, top: 22, bottom: 38 };
const specs = JSON.parse(document.getElementById("data").textContent);
const zooms = {}; // by name: plots that zoom together, those over time among them
const groups = {}; // by name: plots that share a legend, and stacks that share a scale
const TONES = 8;

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

// The colour of a series: that of its kind, else by its place; past the last colour the lines are dashed.
function tone({ kind, place }, index) {
  const at = place ?? index;
  return kind ? "kind-" + kind : "c" + (at % TONES) + (at < TONES ? "" : " dashed");
}

const digits = (value, most) => value.toLocaleString("en-US", { maximumSignificantDigits: most });
const exact = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : digits(value, 3));
const withUnit = (value, unit) => exact(value) + (unit ? " " + unit : "");

const percent = (share) => (share > 0 && share < 0.05 ? "<0.1" : +share.toFixed(1)) + " %";
const time = (seconds) => (seconds < 1 ? withUnit(seconds * 1e3, "ms") : withUnit(seconds, "s"));

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
