// Tables of numbers are sorted by a click on a heading, or by Enter on it. Without scripts they
// stay in the order of the run.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const value = (row) => {
      const text = row.cells[column].textContent.trim();
      const found = /^(-?[\d.]+(?:e[+-]?\d+)?)\s*([kMGT]?)/.exec(text);
      if (!found) return text;
      return Number(found[1]) * ({ k: 1e3, M: 1e6, G: 1e9, T: 1e12 }[found[2]] ?? 1);
    };
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return up ? order : -order;
      });
      body.append(...rows);
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
