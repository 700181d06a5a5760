// Tables that are sorted by pressing a heading, and tables of two axes whose cells are shaded by their value.
function sortable(table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows].at(-1).cells;
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell && !cell.classList.contains("reason") ? cell.textContent.trim() : "";
    const figure = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(figure) ? text.replace(/^-$/, "") : figure;
  };
  [...heads].forEach((head, column) => {
    const button = html("button", "sort", head, head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = { none: head.dataset.first || "ascending", ascending: "descending", descending: "ascending" };
      const order = next[head.getAttribute("aria-sort") || "none"];
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (a === "" || b === "") return (a === "") - (b === ""); // what has no value comes last, whatever the order
        if (typeof a === "number" && typeof b === "number") return sign * (a - b);
        return sign * String(a).localeCompare(String(b));
      };
      body.append(...rows.toSorted(compare));
    });
  });
}

function heat(figure, spec) {
  const box = figure.querySelector(".plot"), sentence = figure.querySelector("figcaption p");
  const draw = (choice) => {
    box.replaceChildren();
    sentence.textContent = choice.sentence;
    const table = html("table", "heat", html("div", "scroll", box));
    const head = table.createTHead().insertRow();
    html("th", "", head, `${spec.y.label} \\ ${spec.x.label}`).scope = "col";
    for (const name of spec.x.names) html("th", "", head, name).scope = "col";
    const body = table.createTBody();
    spec.y.names.forEach((name, row) => {
      const line = body.insertRow();
      html("th", "", line, name).scope = "row";
      choice.texts[row].forEach((text, column) => {
        const shade = choice.shades[row][column];
        html("td", (shade === null ? "" : "h" + shade) + (choice.best[0] === row && choice.best[1] === column ? " top" : ""), line, text);
      });
    });
  };
  choose(figure, spec.choices, draw);
  draw(spec.choices[0]);
}

// A list to choose from above a plot, where there is more than one thing to show.
function choose(figure, choices, show) {
  if (!choices || choices.length < 2) return;
  const tools = figure.querySelector(".tools"), list = document.createElement("select");
  list.setAttribute("aria-label", "What is shown");
  choices.forEach(({ label }, index) => { html("option", "", list, label).value = index; });
  list.addEventListener("change", () => show(choices[+list.value]));
  tools.prepend(list);
}
