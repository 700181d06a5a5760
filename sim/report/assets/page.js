// Horizontal stacked bars with their numbers in words below each: no zoom, there is nothing to zoom into.
function bars(figure, spec) {
  const box = figure.querySelector(".plot"), tools = figure.querySelector(".tools");
  const colour = (index) => tone({ kind: spec.kinds && spec.kinds[index] }, index);
  const value = spec.x.unit === "%" ? percent : time;
  spec.names.forEach((name, index) => html("span", "key " + colour(index), tools, name));
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

const figures = [...document.querySelectorAll("figure[data-chart]")];
const plots = figures.flatMap((figure) => {
  const spec = specs[figure.dataset.chart];
  const still = { bars, scatter, heat }[spec.kind]; // those that have nothing to zoom into
  return still ? (still(figure, spec), []) : [new Plot(figure, spec)];
});
Plot.draw(plots);
document.querySelectorAll("table.sortable").forEach(sortable);
document.body.dataset.drawn = figures.length;
