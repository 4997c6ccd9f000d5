"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Light or dark: follow the system until the button is pressed.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();
  document.getElementById("print").addEventListener("click", () => print());
  document.querySelector(".tools").hidden = false;

  // Print folded parts too, and fold them again afterwards.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of opened) fold.open = false;
  });

  // Tables: a click on a heading sorts by it, a second click reverses the order.
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === typeof b) return a.localeCompare(b, "en", { numeric: true });
    return typeof a === "number" ? 1 : -1; // cells without a number sort below all numbers
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const figures = [...table.tBodies[0].rows].some((row) => row.cells[column].dataset.value);
        const before = heading.getAttribute("aria-sort");
        const first = figures ? "descending" : "ascending";
        const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => sign * compare(key(a, column), key(b, column)));
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Charts: show the values at the pointer, or at the slider for keyboard users.
  const scale = (text) => {
    const [low, high, begin, end] = text.split(" ").map(Number);
    const log = text.endsWith("log");
    return {
      value: (at) => {
        const share = (at - begin) / (end - begin);
        return log ? low * (high / low) ** share : low + share * (high - low);
      },
      begin,
      end,
    };
  };
  const short = (value) =>
    Math.abs(value) >= 1000
      ? Math.round(value).toLocaleString("en")
      : String(Number(value.toPrecision(3)));
  const points = (path) => {
    const numbers = path.getAttribute("d").match(/-?[\d.]+/g).map(Number);
    return numbers.filter((_, at) => at % 2 === 0).map((x, at) => [x, numbers[2 * at + 1]]);
  };
  const readers = [];
  for (const input of document.querySelectorAll(".choice input")) {
    input.addEventListener("change", () => readers.forEach((read) => read()));
  }
  for (const figure of document.querySelectorAll("figure.chart")) {
    const plots = [...figure.querySelectorAll("svg.plot")];
    const shown = () => plots.find((plot) => getComputedStyle(plot).display !== "none");
    const readout = document.createElement("p");
    readout.className = "readout";
    readout.setAttribute("role", "status");
    const slider = document.createElement("input");
    slider.type = "range";
    slider.min = "0";
    slider.max = "1";
    slider.step = "0.01";
    slider.value = "1";
    slider.setAttribute("aria-label", `${figure.querySelector("h3").textContent}: read values`);
    const show = (place, marked = true) => {
      const plot = shown();
      if (!plot) return; // in a folded part
      const x = scale(plot.dataset.x);
      const y = scale(plot.dataset.y);
      const lines = [...plot.querySelectorAll("path.line")].map((path) => ({
        name: path.dataset.name,
        points: points(path),
      }));
      if (!lines.length) return;
      const wanted = x.begin + place * (x.end - x.begin);
      const distance = (point) => Math.abs(point[0] - wanted);
      const nearest = (list) => list.reduce((a, b) => (distance(b) < distance(a) ? b : a));
      const found = lines.map((line) => ({ name: line.name, at: nearest(line.points) }));
      const [at] = nearest(found.map((line) => line.at));
      const unit = plot.querySelector(".axis-name").textContent;
      const near = found.filter((line) => Math.abs(line.at[0] - at) < 6);
      const values = near.map((line) => `${line.name} ${short(y.value(line.at[1]))}`);
      const ends = lines.map((line) => `${line.name} ${short(y.value(line.points.at(-1)[1]))}`);
      readout.textContent = marked
        ? `${short(x.value(at))} ${unit}: ${values.join(", ")}`
        : `At the end: ${ends.join(", ")}`;
      const cursor = plot.querySelector(".cursor");
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", marked ? "visible" : "hidden");
    };
    slider.addEventListener("input", () => show(Number(slider.value)));
    slider.addEventListener("focus", () => show(Number(slider.value)));
    for (const plot of plots) {
      plot.addEventListener("pointermove", (event) => {
        const box = plot.getBoundingClientRect();
        const x = scale(plot.dataset.x);
        const at = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
        const place = Math.min(1, Math.max(0, (at - x.begin) / (x.end - x.begin)));
        slider.value = String(place);
        show(place);
      });
    }
    figure.querySelector(".reader").append(slider, readout);
    show(1, false);
    readers.push(() => show(Number(slider.value), false));
  }
})();
