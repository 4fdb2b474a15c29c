"use strict";
// Tables that sort by a click on a heading.

/** Fill a table. A cell is {value (sorts), text, small, kind}; the first column heads its row. */
function fillTable(table, headings, rows) {
  const sort = table.sortedBy || { column: -1, descending: false };
  table.sortedBy = sort;
  const body = element("tbody");
  const order = () => {
    const known = (row) => { const v = row[sort.column].value; return v !== null && v !== undefined && !Number.isNaN(v); };
    const compare = (a, b) => {
      const [x, y] = [a[sort.column].value, b[sort.column].value];
      const way = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return sort.descending ? -way : way;
    };
    // What is missing stands last, whichever way the column is sorted.
    const sorted = sort.column < 0 ? rows : [...rows.filter(known).sort(compare), ...rows.filter((row) => !known(row))];
    body.replaceChildren(...sorted.map(tableRow));
  };
  const head = element("tr", {}, ...headings.map((heading, column) => {
    const cell = element("th", { scope: "col", "aria-sort": column === sort.column ? (sort.descending ? "descending" : "ascending") : "none" },
      element("button", { type: "button" }, heading));
    cell.addEventListener("click", () => {
      sort.descending = sort.column === column ? !sort.descending : false;
      sort.column = column;
      for (const [i, other] of [...head.children].entries())
        other.setAttribute("aria-sort", i === column ? (sort.descending ? "descending" : "ascending") : "none");
      order();
    });
    return cell;
  }));
  if (sort.column >= headings.length) sort.column = -1;
  order();
  table.replaceChildren(element("thead", {}, head), body);
}

/** A row; a click on it calls its `onClick`, where it has one. */
function tableRow(cells) {
  const row = element("tr", cells.onClick ? { class: "choosable" } : {}, ...cells.map((cell, i) => {
    const made = element(i ? "td" : "th", cell.kind ? { class: cell.kind } : {}, cell.text);
    if (cell.title) made.title = cell.title;
    if (cell.small) made.append(" ", element("small", {}, cell.small));
    return made;
  }));
  if (cells.onClick) row.addEventListener("click", cells.onClick);
  return row;
}

/** Columns of a table of layers: entropy, one metric of each label set, optimality, what shares leave; as [heading, key]. */
function tableColumns(labelSets, metric, series) {
  const columns = [["H(Z)", "entropy|"]];
  for (const name of labelSets) columns.push([plain(name), `${metric}|${name}`]);
  const optimality = metric === "mutual_information_corrected" ? "optimality_corrected" : "optimality";
  for (const order of ORDERS) columns.push([`optimality ${order}`, `${optimality}|${order}`]);
  if (metric.startsWith("information_share")) // what the longest n-grams leave
    for (const direction of ["input", "output"]) columns.push([`${direction} left`, `${metric.replace("information_share", "residual")}|${direction}`]);
  return columns.filter(([, key]) => key in series);
}

const valueCell = (value, sd, factor, error, se) => value === null || value === undefined
  ? { value: null, text: "–" }
  : {
    value: value * factor, text: (value * factor).toFixed(4),
    small: [isKnown(sd) ? `± ${(sd * factor).toFixed(4)}` : "", error ? `(± ${(error * factor).toFixed(4)})` : "", isKnown(se) ? `· se ${(se * factor).toFixed(4)}` : ""].filter(Boolean).join(" "),
  };
