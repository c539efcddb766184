"use strict";
// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
// Click a column's head, or the button in it, to sort its table; the page is complete without this.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", "Sort by this column");
    head.append(button);
    head.addEventListener("click", (event) => {
      if (event.target.closest("a")) return;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const order = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
      const number = (a, b) => Number(key(a)) - Number(key(b));
      const numeric = [...body.rows].some((row) => row.cells[column].dataset.sort !== undefined);
      const rows = [...body.rows].sort(numeric ? number : order);
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
