"use strict";
// The leaderboard: selects that filter the rows, and headings that sort them.
(() => {
  const FILTERED = ["method", "task", "budget", "verdict", "study"];
  const table = document.querySelector('table[data-frame="leaderboard"]');
  const form = document.getElementById("filters");
  const status = document.getElementById("filter-status");
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  /** The first line of a cell, without the small type below it. */
  const text = (row, column) => (row.cells[column].firstChild?.textContent ?? "").trim();
  const key = (row, column) => {
    const exact = row.cells[column].querySelector("[data-value]");
    return exact && headings[column].classList.contains("number") ? Number(exact.dataset.value) : text(row, column);
  };

  const filters = FILTERED.map((name) => {
    const column = headings.findIndex((heading) => heading.textContent === name);
    const select = document.createElement("select");
    const values = [...new Set(rows.map((row) => text(row, column)))].sort();
    select.name = name;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    const label = document.createElement("label");
    label.append(name, select);
    label.hidden = values.length < 2;
    form.append(label);
    return { column, select };
  });

  const filter = () => {
    for (const row of rows) {
      row.hidden = filters.some(({ column, select }) => select.value && text(row, column) !== select.value);
    }
    status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };

  const sort = (column, descending) => {
    const missing = (value) => value === "" || value === "–";
    const order = (a, b) => {
      const [left, right] = [key(a, column), key(b, column)];
      if (missing(left) || missing(right)) return missing(left) - missing(right);
      const found = typeof left === "number" && typeof right === "number"
        ? left - right
        : String(left).localeCompare(String(right), "en", { numeric: true });
      return descending ? -found : found;
    };
    headings.forEach((heading, i) => {
      if (i === column) heading.ariaSort = descending ? "descending" : "ascending";
      else heading.removeAttribute("aria-sort");
    });
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  };

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    // Of numbers the largest is asked for first.
    button.addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      sort(column, heading.ariaSort ? heading.ariaSort === "ascending" : numeric);
    });
    heading.replaceChildren(button);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", filter);
  form.hidden = false;
  filter();
})();
