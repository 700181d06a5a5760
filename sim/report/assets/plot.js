class Plot {
  constructor(figure, given) {
    const spec = { ...given, ...(given.choices && given.choices[0]) };
    Object.assign(this, { figure, spec, kind: kinds[spec.kind], log: Boolean(spec.log), ylog: Boolean(spec.ylog) });
    const alone = { plots: [], buttons: [], hidden: new Set(spec.hidden || []) };
    this.group = spec.group ? (groups[spec.group] ??= alone) : alone;
    this.group.plots.push(this);
    this.scaled = spec.kind === "stack" ? this.group.plots : [this]; // those with the same scale
    this.box = figure.querySelector(".plot");
    this.tools = figure.querySelector(".tools");
    this.view = null; // [low, high] when zoomed
    const together = { cdf: null, xy: spec.zoom || null }[spec.kind]; // undefined: over time
    this.peers = together === null ? [] : (zooms[together || "time"] ??= []);
    this.peers.push(this);
    this.addTools();
    this.tip = html("div", "tip", this.box);
    this.tip.hidden = true;
    new ResizeObserver(() => { if (this.box.clientWidth !== this.width) Plot.draw(this.scaled); }).observe(this.box);
    this.listen();
  }

  static draw(plots) {
    for (const plot of plots) plot.measure();
    for (const plot of plots) plot.draw();
  }

  shown() {
    return this.spec.series.map((item, index) => ({ item, index })).filter(({ item }) => !this.group.hidden.has(item.kind || item.name));
  }

  addTools() {
    const legend = document.querySelector(`[data-legend="${this.spec.group}"]`); // one for the group, where there is one
    if (this.spec.series.length > 1 && !(legend && legend.children.length)) this.addLegend(legend || this.tools);
    if (this.spec.kind === "cdf") this.addSwitch("log", "log scale");
    if (this.spec.kind === "xy") this.addSwitch("ylog", "log scale");
    choose(this.figure, this.spec.choices, (choice) => {
      this.spec = { ...this.spec, ...choice };
      this.ylog = Boolean(choice.ylog);
      this.figure.querySelector("[data-switch=ylog]").setAttribute("aria-pressed", String(this.ylog));
      this.view = null;
      this.figure.querySelector("figcaption p").textContent = this.figure.dataset.label = choice.sentence;
      Plot.draw([this]);
    });
    this.reset = html("button", "tool reset", this.tools, "whole range");
    this.reset.type = "button";
    this.reset.hidden = true;
    this.reset.addEventListener("click", () => this.zoom(null));
  }

  addSwitch(which, text) {
    const button = html("button", "tool", this.tools, text);
    button.type = "button";
    button.dataset.switch = which;
    button.setAttribute("aria-pressed", String(this[which]));
    button.addEventListener("click", () => {
      this[which] = !this[which];
      if (which === "log") this.view = null;
      button.setAttribute("aria-pressed", String(this[which]));
      Plot.draw([this]);
    });
  }

  addLegend(place) {
    const { plots, buttons, hidden } = this.group;
    this.spec.series.forEach((item, index) => {
      const button = html("button", "key", place, item.name);
      sign(button, this.spec, item, index);
      const name = item.kind || item.name;
      const press = () => button.setAttribute("aria-pressed", String(!hidden.has(name)));
      const single = (on) => plots.forEach(({ box }) => box.querySelectorAll("path.line").forEach((line) => {
        line.classList.toggle("faint", on && line.dataset.name !== item.name);
      }));
      button.type = "button";
      buttons.push(press);
      press();
      button.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        buttons.forEach((update) => update());
        Plot.draw(plots);
      });
      for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => single(true));
      for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => single(false));
    });
  }

  zoom(view) {
    const [low, high] = this.kind.range(this.spec, this.log);
    let next = null;
    if (view) {
      const begin = Math.max(low, view[0]), end = Math.min(high, view[1]);
      const smallest = this.spec.x.width ? this.spec.x.width * 4 : 0;
      if (!(end - begin > smallest)) return;
      if (begin > low || end < high) next = [begin, end];
    }
    for (const peer of this.peers) peer.view = next;
    Plot.draw(this.peers);
  }

  measure() {
    this.width = this.box.clientWidth || 640;
    this.height = Math.round(Math.min(280, Math.max(this.figure.className === "small" ? 170 : 200, this.width * 0.44)));
    this.at = this.view || this.kind.range(this.spec, this.log);
    if (this.spec.x.width) this.cells = cellsOf(this.spec, this.at, this.width - PAD.left - PAD.right);
  }

  draw() {
    const { width, height, spec, at: view } = this;
    const top = Math.max(...this.scaled.map((plot) => plot.kind.top(plot))) || 1;
    this.bounds = this.kind.span ? this.kind.span(this) : [0, spec.kind === "cdf" ? 103 : spec.most || top * 1.06];
    const px = scale(view[0], view[1], PAD.left, width - PAD.right, this.log);
    const py = scale(...this.bounds, height - PAD.bottom, PAD.top, this.ylog);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": this.figure.dataset.label });
    this.axes(svg, view, top, px, py);
    const clip = "clip-" + this.figure.dataset.chart;
    make("rect", { x: PAD.left - 1, y: 0, width: width - PAD.left - PAD.right + 2, height: height - PAD.bottom + 1 }, make("clipPath", { id: clip }, make("defs", {}, svg)));
    this.kind.draw(this, make("g", { "clip-path": `url(#${clip})` }, svg), view, px, py);
    this.cursor = make("line", { class: "cursor", y1: PAD.top, y2: height - PAD.bottom, visibility: "hidden" }, svg);
    this.selection = make("rect", { class: "selection", y: PAD.top, height: height - PAD.top - PAD.bottom, visibility: "hidden" }, svg);
    const focused = this.svg && document.activeElement === this.svg;
    if (this.svg) this.svg.replaceWith(svg); else this.box.prepend(svg);
    Object.assign(this, { svg, px, py });
    if (focused) svg.focus({ preventScroll: true });
    this.reset.hidden = this.view === null;
  }

  axes(svg, view, top, px, py) {
    const { width, height, spec } = this;
    const bottom = height - PAD.bottom;
    const [low, high] = this.kind.span ? this.bounds : [0, top];
    const levels = spec.kind === "cdf" ? [0, 25, 50, 75, 90, 99] : (this.ylog ? logTicks : linearTicks)(low, high, height / 52);
    for (const tick of levels) {
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

  down(event) {
    const box = this.svg.getBoundingClientRect();
    return ((event.clientY - box.top) * this.height) / box.height;
  }

  listen() {
    this.box.addEventListener("pointermove", (event) => {
      const x = this.pixel(event);
      if (this.from === undefined) { this.hover(x, this.down(event)); return; }
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

  hover(x, y) {
    const value = this.px.invert(x), found = this.kind.read(this, value, y);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.cursor.setAttribute("visibility", "visible");
    this.tip.replaceChildren();
    const title = found.length && found[0].length > 3 ? found[0][3] : withUnit(value, this.spec.x.unit);
    if (title !== null) html("b", "", this.tip, title);
    for (const [index, name, text] of found) {
      const row = html("div", "", this.tip);
      html("i", "dot " + tone(this.spec.series[index], index), row);
      row.append(`${name}: ${text}`);
    }
    this.tip.hidden = !this.tip.hasChildNodes();
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
