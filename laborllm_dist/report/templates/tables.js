"use strict";
// A click or Enter on a heading sorts its table: ascending, then descending, then as it was. Cells with data-number are
// compared as numbers, other cells as text, where "10" comes after "9". Empty cells come last.
const collator = new Intl.Collator("en", { numeric: true });
const isAbsent = (cell) => (cell.dataset.number ?? cell.textContent.trim()) === "";
const compare = (first, second) =>
  first.dataset.number === undefined || second.dataset.number === undefined
    ? collator.compare(first.textContent.trim(), second.textContent.trim())
    : Number(first.dataset.number) - Number(second.dataset.number);

function sortRows(body, rows, column, direction) {
  const sorted = direction === null ? rows : [...rows].sort((first, second) => {
    const [one, other] = [first.cells[column], second.cells[column]];
    if (isAbsent(one) || isAbsent(other)) return isAbsent(one) - isAbsent(other);
    return direction === "ascending" ? compare(one, other) : compare(other, one);
  });
  body.append(...sorted);
}

for (const table of document.querySelectorAll("table")) {
  const [body] = table.tBodies;
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  for (const [column, heading] of rows.length > 1 ? headings.entries() : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const next = before === null ? "ascending" : before === "ascending" ? "descending" : null;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      if (next !== null) heading.setAttribute("aria-sort", next);
      sortRows(body, rows, column, next);
    });
  }
}
