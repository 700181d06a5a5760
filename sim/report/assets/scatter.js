// Points against the diagonal, both axes alike: no zoom; pointing at a point reads it.
function scatter(figure, spec) {
  const box = figure.querySelector(".plot"), tools = figure.querySelector(".tools");
  const hidden = new Set();
  const values = spec.series.flatMap(({ x, y }) => [...x, ...y]).filter((value) => value > 0);
  const low = Math.min(...values) / 1.15, high = Math.max(...values) * 1.15;
  const tip = html("div", "tip", box);
  tip.hidden = true;
  let dots = [];
  spec.series.forEach((item, index) => {
    const button = html("button", "key", tools, item.name);
    sign(button, spec, item, index);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(item.name)) hidden.add(item.name);
      button.setAttribute("aria-pressed", String(!hidden.has(item.name)));
      draw();
    });
  });
  function draw() {
    const width = box.clientWidth || 640, height = Math.round(Math.min(420, Math.max(240, width * 0.62)));
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": figure.dataset.label });
    const bottom = height - PAD.bottom, right = width - PAD.right;
    const px = scale(low, high, PAD.left, right, true), py = scale(low, high, bottom, PAD.top, true);
    for (const tick of logTicks(low, high, height / 52)) {
      make("line", { class: "gridline", x1: PAD.left, x2: right, y1: py(tick), y2: py(tick) }, svg);
      make("text", { class: "tick", x: PAD.left - 7, y: py(tick) + 4, "text-anchor": "end" }, svg, tickText(tick));
    }
    for (const tick of logTicks(low, high, width / 90)) {
      make("line", { class: "gridline", x1: px(tick), x2: px(tick), y1: bottom, y2: bottom + 4 }, svg);
      make("text", { class: "tick", x: px(tick), y: bottom + 16, "text-anchor": "middle" }, svg, tickText(tick));
    }
    make("line", { class: "axis", x1: PAD.left, x2: right, y1: bottom, y2: bottom }, svg);
    make("text", { class: "label", x: 4, y: 11 }, svg, `${spec.y.label}, ${spec.y.unit}`);
    make("text", { class: "label", x: right, y: height - 5, "text-anchor": "end" }, svg, `${spec.x.label}, ${spec.x.unit}`);
    make("line", { class: "limit", x1: px(low), y1: py(low), x2: px(high), y2: py(high) }, svg);
    dots = [];
    spec.series.forEach((item, index) => {
      if (hidden.has(item.name)) return;
      const layer = make("g", { class: "area " + tone(item, index), "fill-opacity": 0.45 }, svg);
      item.x.forEach((x, i) => {
        const at = { x: px(x), y: py(item.y[i]), index, text: `${item.names[i]}: measured ${withUnit(x, spec.x.unit)}, predicted ${withUnit(item.y[i], spec.y.unit)}` };
        marker(layer, pattern(item, index), "", at.x, at.y, 2.6);
        dots.push(at);
      });
    });
    const old = box.querySelector("svg");
    if (old) old.replaceWith(svg); else box.prepend(svg);
  }
  box.addEventListener("pointermove", (event) => {
    const area = box.querySelector("svg").getBoundingClientRect(), ratio = box.querySelector("svg").viewBox.baseVal.width / area.width;
    const x = (event.clientX - area.left) * ratio, y = (event.clientY - area.top) * ratio;
    const near = dots.reduce((best, dot) => { const far = Math.hypot(dot.x - x, dot.y - y); return far < best.far ? { far, dot } : best; }, { far: 24, dot: null });
    tip.hidden = !near.dot;
    if (!near.dot) return;
    tip.textContent = near.dot.text;
    tip.style.left = Math.max(0, Math.min(near.dot.x / ratio + 12, box.clientWidth - tip.offsetWidth)) + "px";
  });
  box.addEventListener("pointerleave", () => { tip.hidden = true; });
  new ResizeObserver(draw).observe(box);
  redraws.push(draw);
  draw();
}
