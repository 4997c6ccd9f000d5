// Choose patches of a picture with a pointer or the keyboard.

// Row and column of a patch, counted from 1.
export const rowAndColumn = (patch, [, columns]) => [
  Math.floor(patch / columns) + 1, (patch % columns) + 1,
];

// Move a cursor over the patches of a box. `onMove` is called for moves by keyboard, `onPick` for
// clicks, Space and Enter.
export function addPatchPicker(box, grid, patch, onMove, onPick) {
  const [rows, columns] = grid;
  const cursor = box.querySelector(".cursor");
  function moveTo(target) {
    patch = target;
    cursor.style.left = `${(100 * (patch % columns)) / columns}%`;
    cursor.style.top = `${(100 * Math.floor(patch / columns)) / rows}%`;
    cursor.style.width = `${100 / columns}%`;
    cursor.style.height = `${100 / rows}%`;
  }
  moveTo(patch);
  box.addEventListener("click", (event) => {
    const area = box.getBoundingClientRect();
    const cell = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    moveTo(cell((event.clientY - area.top) / area.height, rows) * columns
      + cell((event.clientX - area.left) / area.width, columns));
    onPick(patch);
  });
  box.addEventListener("keydown", (event) => {
    const row = Math.floor(patch / columns);
    const column = patch % columns;
    const target = {
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(columns - 1, column + 1)],
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(rows - 1, row + 1), column],
      Home: [row, 0],
      End: [row, columns - 1],
    }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (target) {
      event.preventDefault();
      moveTo(target[0] * columns + target[1]);
      onMove(patch);
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      onPick(patch);
    }
  });
}
