// Patches of a picture, chosen by pointer and keyboard.

// Row and column of a patch, counted from 1.
export const placeOf = (number, [, columns]) => [
  Math.floor(number / columns) + 1, (number % columns) + 1,
];

// Let a person move a cursor over the patches of a box and pick one. `moved` hears of moves by
// keyboard, `picked` of clicks, Space and Enter.
export function picker(box, grid, at, moved, picked) {
  const [rows, columns] = grid;
  const cursor = box.querySelector(".cursor");
  function place(number) {
    at = number;
    cursor.style.left = `${(100 * (at % columns)) / columns}%`;
    cursor.style.top = `${(100 * Math.floor(at / columns)) / rows}%`;
    cursor.style.width = `${100 / columns}%`;
    cursor.style.height = `${100 / rows}%`;
  }
  place(at);
  box.addEventListener("click", (event) => {
    const area = box.getBoundingClientRect();
    const cell = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    place(cell((event.clientY - area.top) / area.height, rows) * columns
      + cell((event.clientX - area.left) / area.width, columns));
    picked(at);
  });
  box.addEventListener("keydown", (event) => {
    const row = Math.floor(at / columns);
    const column = at % columns;
    const to = {
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(columns - 1, column + 1)],
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(rows - 1, row + 1), column],
      Home: [row, 0],
      End: [row, columns - 1],
    }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (to) {
      event.preventDefault();
      place(to[0] * columns + to[1]);
      moved(at);
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      picked(at);
    }
  });
}
