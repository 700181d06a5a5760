// Draws the plots of a report from the JSON in the page. No library, no network, nothing kept.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const PAD = { left: 58, right: 16, top: 22, bottom: 38 };
  const specs = JSON.parse(document.getElementById("data").textContent);
  const timeline = []; // the plots over time, which zoom together

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

  const digits = (value, most) => value.toLocaleString("en-US", { maximumSignificantDigits: most });
  const exact = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : digits(value, 3));
  const withUnit = (value, unit) => exact(value) + (unit ? " " + unit : "");

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

  // --- what the kinds of plots have of their own: range of x, range of y, drawing, reading ---

  // The visible buckets as a screen can show them: where there are more than one to two pixels, neighbours become
  // one cell with the mean of their means, the smallest of their smallest and the largest of their largest.
  function cellsOf({ x, series }, [low, high], pixels) {
    const begin = Math.max(0, Math.floor((low - x.first) / x.width + 1e-6));
    const end = Math.min(x.buckets, Math.ceil((high - x.first) / x.width - 1e-6));
    const every = Math.max(1, Math.ceil((2 * (end - begin)) / pixels));
    const from = begin - (begin % every);
    const count = Math.ceil((end - from) / every);
    const gather = ({ mean, min = mean, max = mean }) => {
      const cells = { mean: Array(count).fill(null), min: Array(count).fill(null), max: Array(count).fill(null) };
      for (let cell = 0; cell < count; cell++) {
        let sum = 0, known = 0, least = Infinity, most = -Infinity;
        for (let i = from + cell * every; i < Math.min(from + (cell + 1) * every, x.buckets); i++) {
          if (mean[i] === null) continue;
          sum += mean[i];
          known += 1;
          least = Math.min(least, min[i]);
          most = Math.max(most, max[i]);
        }
        if (known) [cells.mean[cell], cells.min[cell], cells.max[cell]] = [sum / known, least, most];
      }
      return cells;
    };
    return { left: (cell) => x.first + (from + cell * every) * x.width, count, series: series.map(gather) };
  }

  function cellAt({ cells }, value) {
    return Math.min(cells.count - 1, Math.max(0, Math.floor((value - cells.left(0)) / (cells.left(1) - cells.left(0)))));
  }

  // A closed path between two step curves, or an open one along `high` alone; values of null leave a gap.
  function stepPath({ left, count }, low, high, px, py) {
    let path = "";
    for (let i = 0; i < count; i++) {
      if (high[i] === null) continue;
      const back = [];
      path += "M" + px(left(i)).toFixed(1) + " " + py(high[i]).toFixed(1);
      for (; i < count && high[i] !== null; i++) {
        path += "V" + py(high[i]).toFixed(1) + "H" + px(left(i + 1)).toFixed(1);
        if (low) back.push("V" + py(low[i]).toFixed(1) + "H" + px(left(i)).toFixed(1));
      }
      if (low) path += back.reverse().join("") + "Z";
    }
    return path;
  }

  const range = ({ x }) => [x.first, x.first + x.width * x.buckets];

  const lines = {
    range,
    top: (plot) => plot.shown().reduce((top, { index }) => Math.max(top, ...plot.cells.series[index].max), 0),
    draw(plot, layer, view, px, py) {
      const drawn = plot.shown().map(({ index }) => [index, plot.cells.series[index]]);
      for (const [index, { min, max }] of drawn) make("path", { class: "band c" + index, d: stepPath(plot.cells, min, max, px, py) }, layer);
      for (const [index, { mean }] of drawn) make("path", { class: "line c" + index, d: stepPath(plot.cells, null, mean, px, py) }, layer);
    },
    read(plot, value) {
      const cell = cellAt(plot, value);
      return plot.shown().map(({ item, index }) => {
        const { mean, min, max } = plot.cells.series[index];
        if (mean[cell] === null) return [index, item.name, "nothing ran"];
        const range = max[cell] > min[cell] ? ` (${exact(min[cell])} to ${exact(max[cell])})` : "";
        return [index, item.name, withUnit(mean[cell], plot.spec.y.unit) + range];
      });
    },
  };

  const stack = {
    range,
    sums(plot) {
      const sums = [Array(plot.cells.count).fill(0)];
      for (const { index } of plot.shown()) sums.push(sums.at(-1).map((sum, cell) => sum + plot.cells.series[index].mean[cell]));
      return sums;
    },
    top: (plot) => Math.max(...stack.sums(plot).at(-1)),
    draw(plot, layer, view, px, py) {
      const sums = stack.sums(plot);
      plot.shown().forEach(({ item, index }, i) => {
        make("path", { class: `area c${index} kind-${item.kind}`, d: stepPath(plot.cells, sums[i], sums[i + 1], px, py) }, layer);
      });
    },
    read(plot, value) {
      const cell = cellAt(plot, value);
      const all = plot.cells.series.reduce((sum, { mean }) => sum + mean[cell], 0) || 1;
      const text = (part) => `${exact(part)} (${digits((100 * part) / all, 3)} %)`;
      return plot.shown().map(({ item, index }) => [index, item.name, text(plot.cells.series[index].mean[cell]), item.kind]).reverse();
    },
  };

  const cdf = {
    range(spec, log) {
      const ends = spec.series.flatMap(({ x }) => [x[0], x.at(-1)]);
      const most = Math.max(...ends);
      const near = spec.limits.map((limit) => limit.x).filter((x) => x < 2 * most); // further ones would squeeze the curve
      const far = Math.max(most, ...near);
      if (log) return [Math.max(Math.min(...ends, ...near), far * 1e-6) / 1.05, far * 1.05];
      return [0, far * 1.02 || 1];
    },
    top: () => 100,
    // Percent at or below a value, between the points as straight as numpy's percentiles are.
    share({ x, y }, value) {
      if (value < x[0]) return 0;
      let low = 0, high = x.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (x[middle] <= value) low = middle; else high = middle - 1;
      }
      if (low === x.length - 1) return 100;
      return y[low] + ((y[low + 1] - y[low]) * (value - x[low])) / (x[low + 1] - x[low]);
    },
    draw(plot, layer, [low, high], px, py) {
      for (const { item, index } of plot.shown()) {
        const points = [[low, cdf.share(item, low)]];
        item.x.forEach((x, i) => { if (x > low && x < high) points.push([x, item.y[i]]); });
        points.push([high, cdf.share(item, high)]);
        const d = points.map(([x, y]) => px(x).toFixed(1) + " " + py(y).toFixed(1)).join("L");
        make("path", { class: "line c" + index, d: "M" + d }, layer);
      }
      for (const limit of plot.spec.limits) {
        const beyond = limit.x > high;
        if (limit.x < low) continue;
        const x = px(Math.min(limit.x, high)), left = x > plot.width / 2;
        if (!beyond) make("line", { class: "limit", x1: x, x2: x, y1: PAD.top, y2: py(0) }, layer);
        const at = { class: "limit-text", x: x + (left ? -5 : 5), y: py(0) - 8, "text-anchor": left ? "end" : "start" };
        make("text", at, layer, limit.label + (beyond ? " \u2192" : ""));
      }
      for (const mark of plot.spec.marks) {
        if (mark.x < low || mark.x > high) continue;
        const x = px(mark.x), left = x > plot.width * 0.66;
        make("circle", { class: "mark", cx: x, cy: py(mark.y), r: 3.5 }, layer);
        const at = { class: "mark-text", x: x + (left ? -7 : 7), y: py(mark.y) + (left ? -4 : mark.y > 95 ? -5 : 13), "text-anchor": left ? "end" : "start" };
        make("text", at, layer, mark.label + "  " + withUnit(mark.x, plot.spec.x.unit));
      }
    },
    read: (plot, value) => plot.shown().map(({ item, index }) => {
      const share = cdf.share(item, value);
      const text = share > 99 && share < 100 ? (Math.floor(share * 1000) / 1000).toString() : digits(share, 3);
      return [index, "at or below", text + " %"];
    }),
  };

  const kinds = { lines, stack, cdf };

  class Plot {
    constructor(figure, spec) {
      Object.assign(this, { figure, spec, kind: kinds[spec.kind], log: Boolean(spec.log), hidden: new Set(spec.hidden || []) });
      this.box = figure.querySelector(".plot");
      this.tools = figure.querySelector(".tools");
      this.view = null; // [low, high] when zoomed
      this.peers = spec.kind === "cdf" ? [this] : timeline;
      if (this.peers === timeline) timeline.push(this);
      this.addTools();
      this.tip = html("div", "tip", this.box);
      this.tip.hidden = true;
      new ResizeObserver(() => { if (this.box.clientWidth !== this.width) this.draw(); }).observe(this.box);
      this.draw();
      this.listen();
    }

    shown() {
      return this.spec.series.map((item, index) => ({ item, index })).filter(({ item }) => !this.hidden.has(item.kind || item.name));
    }

    addTools() {
      if (this.spec.series.length > 1) {
        this.spec.series.forEach((item, index) => {
          const button = html("button", `key c${index} kind-${item.kind}`, this.tools, item.name);
          const name = item.kind || item.name;
          button.type = "button";
          button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
          button.addEventListener("click", () => {
            if (!this.hidden.delete(name)) this.hidden.add(name);
            button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
            this.draw();
          });
        });
      }
      if (this.spec.kind === "cdf") {
        const button = html("button", "tool", this.tools, "log scale");
        button.type = "button";
        button.setAttribute("aria-pressed", String(this.log));
        button.addEventListener("click", () => {
          this.log = !this.log;
          this.view = null;
          button.setAttribute("aria-pressed", String(this.log));
          this.draw();
        });
      }
      this.reset = html("button", "tool reset", this.tools, "whole range");
      this.reset.type = "button";
      this.reset.hidden = true;
      this.reset.addEventListener("click", () => this.zoom(null));
    }

    zoom(view) {
      const [low, high] = this.kind.range(this.spec, this.log);
      let next = null;
      if (view) {
        const begin = Math.max(low, view[0]), end = Math.min(high, view[1]);
        const smallest = this.spec.kind === "cdf" ? 0 : this.spec.x.width * 4;
        if (!(end - begin > smallest)) return;
        if (begin > low || end < high) next = [begin, end];
      }
      for (const peer of this.peers) {
        peer.view = next;
        peer.draw();
      }
    }

    draw() {
      this.width = this.box.clientWidth || 640;
      this.height = Math.round(Math.min(280, Math.max(200, this.width * 0.44)));
      const { width, height, spec } = this;
      const view = this.view || this.kind.range(spec, this.log);
      if (spec.kind !== "cdf") this.cells = cellsOf(spec, view, width - PAD.left - PAD.right);
      const top = this.kind.top(this) || 1;
      const high = spec.kind === "cdf" ? 103 : top * 1.06;
      const px = scale(view[0], view[1], PAD.left, width - PAD.right, this.log);
      const py = scale(0, high, height - PAD.bottom, PAD.top, false);
      const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": this.figure.dataset.label });
      this.axes(svg, view, top, px, py);
      const clip = "clip-" + this.figure.dataset.chart;
      make("rect", { x: PAD.left - 1, y: 0, width: width - PAD.left - PAD.right + 2, height: height - PAD.bottom + 1 }, make("clipPath", { id: clip }, make("defs", {}, svg)));
      this.kind.draw(this, make("g", { "clip-path": `url(#${clip})` }, svg), view, px, py);
      this.cursor = make("line", { class: "cursor", y1: PAD.top, y2: height - PAD.bottom, visibility: "hidden" }, svg);
      this.selection = make("rect", { class: "selection", y: PAD.top, height: height - PAD.top - PAD.bottom, visibility: "hidden" }, svg);
      const focused = this.svg && document.activeElement === this.svg;
      if (this.svg) this.svg.replaceWith(svg); else this.box.prepend(svg);
      Object.assign(this, { svg, px, at: view });
      if (focused) svg.focus({ preventScroll: true });
      this.reset.hidden = this.view === null;
    }

    axes(svg, view, top, px, py) {
      const { width, height, spec } = this;
      const bottom = height - PAD.bottom;
      for (const tick of spec.kind === "cdf" ? [0, 25, 50, 75, 90, 99] : linearTicks(0, top, height / 52)) {
        const y = py(tick);
        make("line", { class: "gridline", x1: PAD.left, x2: width - PAD.right, y1: y, y2: y }, svg);
        make("text", { class: "tick", x: PAD.left - 7, y: y + 4, "text-anchor": "end" }, svg, tickText(tick));
      }
      const wanted = Math.max(2, (width - PAD.left) / 90);
      for (const tick of (this.log ? logTicks : linearTicks)(view[0], view[1], wanted)) {
        make("line", { class: "gridline", x1: px(tick), x2: px(tick), y1: bottom, y2: bottom + 4 }, svg);
        make("text", { class: "tick", x: px(tick), y: bottom + 16, "text-anchor": "middle" }, svg, tickText(tick));
      }
      make("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: bottom, y2: bottom }, svg);
      const name = ({ label, unit }) => label + (unit ? `, ${unit}` : "");
      make("text", { class: "label", x: 4, y: 11 }, svg, name(spec.y));
      make("text", { class: "label", x: width - PAD.right, y: height - 5, "text-anchor": "end" }, svg, name(spec.x));
    }

    // --- hover, drag, wheel, keys ---

    pixel(event) {
      const box = this.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) * this.width) / box.width;
      return Math.min(this.width - PAD.right, Math.max(PAD.left, x));
    }

    listen() {
      this.box.addEventListener("pointermove", (event) => {
        const x = this.pixel(event);
        if (this.from === undefined) { this.hover(x); return; }
        const [low, high] = [Math.min(this.from, x), Math.max(this.from, x)];
        for (const [key, value] of Object.entries({ x: low, width: high - low, visibility: "visible" })) this.selection.setAttribute(key, value);
        this.hover(x);
      });
      this.box.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        this.from = this.pixel(event);
        this.box.setPointerCapture(event.pointerId);
      });
      const drop = (event) => {
        const [from, to] = [this.from, this.pixel(event)];
        this.from = undefined;
        this.selection.setAttribute("visibility", "hidden");
        if (event.type === "pointerup" && from !== undefined && Math.abs(to - from) > 8) {
          this.zoom([this.px.invert(Math.min(from, to)), this.px.invert(Math.max(from, to))]);
        }
      };
      this.box.addEventListener("pointerup", drop);
      this.box.addEventListener("pointercancel", drop);
      this.box.addEventListener("pointerleave", () => this.leave());
      this.box.addEventListener("dblclick", () => this.zoom(null));
      this.box.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the plain wheel scrolls the page
        event.preventDefault();
        this.stretch(this.pixel(event), Math.exp(event.deltaY * 0.004));
      }, { passive: false });
      this.box.addEventListener("keydown", (event) => {
        const middle = (PAD.left + this.width - PAD.right) / 2;
        const shift = (this.width - PAD.left - PAD.right) / 5;
        const act = {
          "+": () => this.stretch(middle, 0.6), "=": () => this.stretch(middle, 0.6), "-": () => this.stretch(middle, 1.6),
          ArrowLeft: () => this.pan(-shift), ArrowRight: () => this.pan(shift), Escape: () => this.zoom(null), 0: () => this.zoom(null),
        }[event.key];
        if (act) { event.preventDefault(); act(); }
      });
    }

    stretch(x, factor) {
      const edge = (side) => this.px.invert(x + (side - x) * factor);
      const [low, high] = [edge(PAD.left), edge(this.width - PAD.right)];
      this.zoom([low, high]);
    }

    pan(pixels) {
      const [low, high] = this.kind.range(this.spec, this.log);
      const begin = this.px.invert(PAD.left + pixels), end = this.px.invert(this.width - PAD.right + pixels);
      if (this.view && begin >= low && end <= high) this.zoom([begin, end]);
    }

    hover(x) {
      const value = this.px.invert(x);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
      this.cursor.setAttribute("visibility", "visible");
      this.tip.replaceChildren();
      html("b", "", this.tip, withUnit(value, this.spec.x.unit));
      for (const [index, name, text, kind] of this.kind.read(this, value)) {
        const row = html("div", "", this.tip);
        html("i", `dot c${index} kind-${kind}`, row);
        row.append(`${name}: ${text}`);
      }
      this.tip.hidden = false;
      const ratio = this.box.clientWidth / this.width;
      const left = x * ratio + (x > this.width / 2 ? -12 - this.tip.offsetWidth : 12);
      this.tip.style.left = Math.max(0, Math.min(left, this.box.clientWidth - this.tip.offsetWidth)) + "px";
    }

    leave() {
      if (this.from !== undefined) return;
      this.tip.hidden = true;
      this.cursor.setAttribute("visibility", "hidden");
    }
  }

  // Horizontal stacked bars with their numbers in words below each: no zoom, there is nothing to zoom into.
  function bars(figure, spec) {
    const box = figure.querySelector(".plot"), tools = figure.querySelector(".tools");
    spec.names.forEach((name, index) => html("span", "key c" + index, tools, name));
    const total = (row) => row.values.reduce((sum, value) => sum + value, 0);
    const longest = Math.max(...spec.rows.map(total)) || 1;
    for (const row of spec.rows) {
      const all = total(row);
      const head = html("div", "bar-head", box);
      html("b", "", head, row.label);
      html("span", "", head, `${time(all)}, ${exact(row.count)} ${row.count === 1 ? "request" : "requests"}`);
      const svg = make("svg", { class: "bar", role: "img", "aria-label": row.label, height: 18, width: "100%" }, box);
      let from = 0;
      row.values.forEach((value, index) => {
        make("rect", { class: "area c" + index, x: (100 * from) / longest + "%", width: (100 * value) / longest + "%", height: 18 }, svg);
        from += value;
      });
      const words = spec.names.map((name, index) => `${name} ${time(row.values[index])} (${digits((100 * row.values[index]) / (all || 1), 2)} %)`);
      html("p", "bar-words", box, words.join(", "));
    }
  }

  let drawn = 0;
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const spec = specs[figure.dataset.chart];
    if (spec.kind === "bars") bars(figure, spec); else new Plot(figure, spec);
    drawn += 1;
  }
  document.body.dataset.drawn = drawn;
})();
