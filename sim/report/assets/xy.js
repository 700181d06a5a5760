// Points of two numbers, joined to lines with a band of their spread, or loose with the front of the best ones.
const xy = {
  points: ({ x, y }) => x.map((value, i) => [value, y[i]]).filter((pair) => pair[0] !== null && pair[1] !== null),
  // With a logarithmic axis what is not above zero cannot be drawn.
  usable: (plot, value, log) => value !== null && (!log || value > 0),
  // An axis spans at least a tenth of its values to either side, so that it never makes a mountain of noise.
  room: (low, high, share) => Math.max((high - low || Math.abs(high) || 1) * share, Math.abs(high + low) / 20 - (high - low) / 2),
  range(spec, log) {
    const all = spec.series.flatMap(({ x }) => x).filter((value) => value !== null && (!log || value > 0));
    if (!all.length) return [log ? 0.1 : 0, 1];
    const low = Math.min(...all), high = Math.max(...all);
    if (log) return [low / 1.12, high * 1.12];
    const room = xy.room(low, high, 0.04);
    return [low > 0 && low < 0.4 * high ? 0 : low - room, high + room];
  },
  // Smallest and largest value among the points in view, the limits near them included.
  span(plot) {
    const [from, to] = plot.at, values = [];
    for (const { item } of plot.shown()) {
      item.x.forEach((x, i) => {
        if (x === null || x < from || x > to) return;
        for (const value of [item.y[i], item.low && item.low[i], item.high && item.high[i]]) {
          if (value !== undefined && xy.usable(plot, value, plot.ylog)) values.push(value);
        }
      });
    }
    if (!values.length) return [plot.ylog ? 0.1 : 0, 1];
    let low = Math.min(...values), high = Math.max(...values);
    for (const { y } of plot.spec.limits || []) if (y < 1.5 * high && y > 0) { low = Math.min(low, y); high = Math.max(high, y); }
    if (plot.ylog) return [low / 1.25, high * 1.25];
    const room = xy.room(low, high, 0.06);
    return [plot.spec.zero === false && low > 0.3 * high ? low - room : Math.min(0, low), high + room];
  },
  top: (plot) => xy.span(plot)[1],
  draw(plot, layer, view, px, py) {
    const { spec } = plot, [bottom] = plot.bounds;
    const floor = (value) => (plot.ylog ? Math.max(value, bottom) : value);
    for (const { item, index } of plot.shown()) {
      const kept = item.x.map((x, i) => i).filter((i) => xy.usable(plot, item.x[i], plot.log) && xy.usable(plot, item.y[i], plot.ylog));
      if (item.low && kept.length > 1) {
        const edge = (values, i) => `${px(item.x[i]).toFixed(1)} ${py(floor(values[i])).toFixed(1)}`;
        const d = "M" + [...kept.map((i) => edge(item.high, i)), ...kept.toReversed().map((i) => edge(item.low, i))].join("L") + "Z";
        make("path", { class: "band " + tone(item, index), d }, layer);
      }
      if (spec.joined && kept.length > 1) {
        const d = "M" + kept.map((i) => px(item.x[i]).toFixed(1) + " " + py(item.y[i]).toFixed(1)).join("L");
        make("path", { class: "line " + tone(item, index), "data-name": item.name, d }, layer);
      }
      if (item.front) { // steps along the best points: what lies above and to the right is worse in both
        const d = kept.map((i, n) => (n ? "H" + px(item.x[i]).toFixed(1) + "V" : "M" + px(item.x[i]).toFixed(1) + " ") + py(item.y[i]).toFixed(1));
        if (d.length) make("path", { class: "front", d: d.join("") }, layer);
      }
      const radius = item.front ? 5.5 : spec.joined ? 3 : 3.4;
      for (const i of kept) {
        const shape = item.front ? "front-mark" : item.hollow && item.hollow[i] ? "hollow " + tone(item, index) : "point " + tone(item, index);
        marker(layer, item.front ? 0 : pattern(item, index), shape, px(item.x[i]), py(item.y[i]), radius);
      }
    }
    for (const { y, label } of spec.limits || []) {
      if (y < plot.bounds[0] || y > plot.bounds[1]) continue;
      make("line", { class: "limit", x1: PAD.left, x2: plot.width - PAD.right, y1: py(y), y2: py(y) }, layer);
      make("text", { class: "limit-text", x: PAD.left + 6, y: py(y) - 5 }, layer, label);
    }
  },
  // Of each line its point nearest to the cursor, or, of loose points, the nearest of all.
  read(plot, value, pointer) {
    const near = ({ item, index }) => {
      let best = null;
      item.x.forEach((x, i) => {
        if (!xy.usable(plot, x, plot.log) || !xy.usable(plot, item.y[i], plot.ylog) || x < plot.at[0] || x > plot.at[1]) return;
        const across = plot.px(x) - plot.px(value), down = plot.spec.joined || pointer === undefined ? 0 : plot.py(item.y[i]) - pointer;
        const far = Math.hypot(across, down);
        if (!best || far < best.far) best = { far, i, item, index };
      });
      return best;
    };
    const found = plot.shown().map(near).filter(Boolean);
    if (!plot.spec.joined) {
      found.sort((one, other) => one.far - other.far);
      return found.slice(0, 1).map((one) => xy.told(plot, one, true));
    }
    const least = Math.min(...found.map(({ far }) => far));
    return found.filter(({ far }) => far <= least + 12).map((one) => xy.told(plot, one, false));
  },
  told({ spec }, { item, index, i }, both) {
    const spread = item.low && item.high[i] > item.low[i] ? ` (${exact(item.low[i])} to ${exact(item.high[i])})` : "";
    const shaky = item.hollow && item.hollow[i] ? `, ${spec.hollow}` : "";
    const at = both ? `${spec.x.label} ${withUnit(item.x[i], spec.x.unit)}, ` : "";
    const name = spec.names && item.id ? spec.names[item.id[i]] : item.name;
    const text = `${at}${both ? spec.y.label + " " : ""}${withUnit(item.y[i], spec.y.unit)}${spread}${shaky}`;
    return [index, name, text, both ? null : withUnit(item.x[i], spec.x.unit)];
  },
};
kinds.xy = xy;
