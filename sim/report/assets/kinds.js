// What the kinds of plots have of their own: range of x, range of y, drawing, reading

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
  top(plot) {
    const highest = ({ index }) => plot.cells.series[index][plot.spec.bands === false ? "mean" : "max"];
    return plot.shown().reduce((top, shown) => Math.max(top, ...highest(shown)), 0);
  },
  draw(plot, layer, view, px, py) {
    for (const { item, index } of plot.spec.bands === false ? [] : plot.shown()) {
      const { min, max } = plot.cells.series[index];
      make("path", { class: "band " + tone(item, index), d: stepPath(plot.cells, min, max, px, py) }, layer);
    }
    for (const { item, index } of plot.shown()) {
      const d = stepPath(plot.cells, null, plot.cells.series[index].mean, px, py);
      make("path", { class: "line " + tone(item, index), "data-name": item.name, d }, layer);
    }
  },
  read(plot, value) {
    const cell = cellAt(plot, value);
    return plot.shown().map(({ item, index }) => {
      const { mean, min, max } = plot.cells.series[index];
      if (mean[cell] === null) return [index, item.name, plot.spec.nothing || "nothing ran"];
      const range = max[cell] > min[cell] ? ` (${exact(min[cell])} to ${exact(max[cell])})` : "";
      return [index, item.name, withUnit(mean[cell], plot.spec.y.unit) + range];
    });
  },
};

const stack = {
  range,
  sums(plot) {
    const sums = [Array(plot.cells.count).fill(0)];
    for (const { index } of plot.shown()) {
      const { mean } = plot.cells.series[index];
      sums.push(sums.at(-1).map((sum, cell) => (mean[cell] === null ? null : sum + mean[cell])));
    }
    return sums;
  },
  top: (plot) => plot.spec.most || Math.max(...stack.sums(plot).at(-1)),
  draw(plot, layer, view, px, py) {
    const sums = stack.sums(plot);
    plot.shown().forEach(({ item, index }, i) => {
      make("path", { class: "area " + tone(item, index), d: stepPath(plot.cells, sums[i], sums[i + 1], px, py) }, layer);
    });
  },
  read(plot, value) {
    const cell = cellAt(plot, value);
    const all = plot.cells.series.reduce((sum, { mean }) => sum + mean[cell], 0) || 1;
    const text = (part) => (part === null ? plot.spec.nothing : `${exact(part)} (${digits((100 * part) / all, 3)} %)`);
    return plot.shown().map(({ item, index }) => [index, item.name, text(plot.cells.series[index].mean[cell])]).reverse();
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
      make("path", { class: "line " + tone(item, index), "data-name": item.name, d: "M" + d }, layer);
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
      make("text", at, layer, mark.label);
    }
  },
  read: (plot, value) => plot.shown().map(({ item, index }) => {
    const share = cdf.share(item, value);
    const text = share > 99 && share < 100 ? (Math.floor(share * 1000) / 1000).toString() : digits(share, 3);
    return [index, plot.spec.series.length > 1 ? item.name : "at or below", text + " %"];
  }),
};

const kinds = { lines, stack, cdf };
