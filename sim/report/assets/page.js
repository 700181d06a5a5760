// Draws every figure of the page and makes its tables sortable.
const figures = [...document.querySelectorAll("figure[data-chart]")];
const plots = figures.flatMap((figure) => {
  const spec = specs[figure.dataset.chart];
  const still = { bars, scatter, heat, ranges }[spec.kind]; // those that have nothing to zoom into
  return still ? (still(figure, spec), []) : [new Plot(figure, spec)];
});
Plot.draw(plots);
// Paper is as wide as it is: plots are drawn for it, and for the screen again afterwards.
const redraw = (paper) => {
  document.body.classList.toggle("paper", paper);
  Plot.draw(plots);
  redraws.forEach((draw) => draw());
};
window.addEventListener("beforeprint", () => redraw(true));
window.addEventListener("afterprint", () => redraw(false));
document.querySelectorAll("table.sortable").forEach(sortable);
document.body.dataset.drawn = figures.length;
