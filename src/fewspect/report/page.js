// A click on a heading sorts its table, a second one the other way round.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => (head.onclick = () => {
    const way = head.dataset.way === "1" ? -1 : 1;
    heads.forEach((h) => delete h.dataset.way);
    head.dataset.way = way;
    const key = (row) => {
      const text = row.cells[column].textContent, number = parseFloat(text);
      return isNaN(number) ? text : number;
    };
    const compare = (a, b) => (key(a) > key(b) ? way : key(a) < key(b) ? -way : 0);
    [...table.tBodies[0].rows].sort(compare).forEach((row) => table.tBodies[0].append(row));
  }));
}
