"use strict";
// Columns are sorted by their first number, else as text; what has no number comes last.
const number = (text) => {
  const found = text.replace(/,(?=\d{3})/g, "").match(/^[-+]?\d+(\.\d+)?/);
  return found ? Number(found[0]) : null;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row, row.cells[column].textContent.trim()]);
      const numeric = rows.some(([, text]) => number(text) !== null);
      rows.sort(([, a], [, b]) => {
        if (!numeric) return down ? b.localeCompare(a) : a.localeCompare(b);
        const [x, y] = [number(a), number(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return down ? y - x : x - y;
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}
// The key that goes from link to link stops once in a row: its numbers lead where its name does.
for (const link of document.querySelectorAll("table.sortable td a")) link.tabIndex = -1;
// A link into what is folded, and paper, unfold it.
const unfold = (element) => {
  for (let at = element; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
};
const follow = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) unfold(target);
};
addEventListener("hashchange", follow);
follow();
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
