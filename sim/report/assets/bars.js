// Horizontal stacked bars with their numbers in words below each: no zoom, there is nothing to zoom into.
function bars(figure, spec) {
  const box = figure.querySelector(".plot"), tools = figure.querySelector(".tools");
  const colour = (index) => tone({ kind: spec.kinds && spec.kinds[index] }, index);
  const value = (part) => (spec.x.unit === "%" ? percent(part) : withUnit(part, spec.x.unit));
  spec.names.forEach((name, index) => sign(html("span", "key", tools, name), spec, { name, kind: spec.kinds && spec.kinds[index] }, index));
  const total = (row) => row.values.reduce((sum, part) => sum + part, 0);
  const longest = Math.max(...spec.rows.map(total)) || 1;
  for (const row of spec.rows) {
    const all = total(row);
    const head = html("div", "bar-head", box);
    html("b", "", head, row.label);
    html("span", "", head, row.note);
    const words = spec.names.map((name, index) => {
      const share = spec.x.unit === "%" ? "" : ` (${digits((100 * row.values[index]) / (all || 1), 2)} %)`;
      return `${name} ${value(row.values[index])}${share}`;
    });
    const svg = make("svg", { class: "bar", role: "img", "aria-label": `${row.label}: ${words.join(", ")}`, height: 18, width: "100%" }, box);
    let from = 0;
    row.values.forEach((part, index) => {
      make("rect", { class: "area " + colour(index), x: (100 * from) / longest + "%", width: (100 * part) / longest + "%", height: 18 }, svg);
      from += part;
    });
    html("p", "bar-words", box, words.join(", "));
  }
}

// A bar from low to high for each row, the likely value marked, over one axis from zero; open where no high is known.
function ranges(figure, spec) {
  const box = figure.querySelector(".plot");
  const draw = ({ x, rows }) => {
    box.replaceChildren();
    const most = Math.max(...rows.flatMap(({ low, likely, high }) => [low, likely, high]).filter((value) => value !== null)) || 1;
    const at = (value) => (94 * value) / most + "%";
    for (const { label, text, low, likely, high } of rows) {
      const head = html("div", "bar-head", box);
      html("b", "", head, label);
      html("span", "", head, text);
      const svg = make("svg", { class: "bar", role: "img", "aria-label": `${label}: ${text}`, height: 14, width: "100%" }, box);
      make("line", { class: "gridline", x1: 0, x2: "100%", y1: 7, y2: 7 }, svg);
      const from = low ?? likely;
      if (high === null) {
        make("line", { class: "line c0 d1", x1: at(from), x2: "98%", y1: 7, y2: 7 }, svg);
        make("text", { class: "label", x: "100%", y: 11, "text-anchor": "end" }, svg, "\u2192");
      } else make("rect", { class: "area c0", x: at(from), width: (94 * (high - from)) / most + "%", y: 3, height: 8 }, svg);
      if (likely === null) make("line", { class: "axis", x1: at(from), x2: at(from), y1: 1, y2: 13 }, svg);
      else make("circle", { class: "mark", cx: at(likely), cy: 7, r: 4.5 }, svg);
    }
    const axis = make("svg", { class: "bar", height: 34, width: "100%", "aria-hidden": "true" }, box);
    make("line", { class: "axis", x1: 0, x2: "100%", y1: 4, y2: 4 }, axis);
    for (const tick of linearTicks(0, most, Math.max(2, box.clientWidth / 130))) {
      make("line", { class: "axis", x1: at(tick), x2: at(tick), y1: 4, y2: 8 }, axis);
      make("text", { class: "tick", x: at(tick), y: 19, "text-anchor": tick ? "middle" : "start" }, axis, tickText(tick));
    }
    make("text", { class: "label", x: "100%", y: 31, "text-anchor": "end" }, axis, x.label);
  };
  let shown = spec.choices[0];
  choose(figure, spec.choices, (choice) => { shown = choice; draw(shown); });
  redraws.push(() => draw(shown));
  draw(shown);
}
