"use strict";
// Builds the page, a figure at a time so that it shows at once, and follows the unit, and the printer's width.
const tables = DATA.kind === "sweep" ? buildSweep() : buildRuns();
tables.forEach((fill) => fill());
for (const input of document.querySelectorAll('input[name="unit"]')) {
  input.addEventListener("change", () => {
    unit = input.value;
    redraw();
    tables.forEach((fill) => fill());
  });
}
bandSwitch(Object.values(DATA.series || Object.assign({}, ...DATA.runs.map((run) => run.series))));
DARK.addEventListener("change", () => redraw());
// Figures are drawn for a width: a sheet's while it is printed.
const fit = (printing) => () => {
  document.body.classList.toggle("printing", printing);
  for (const { node } of figures) if (node.data) Plotly.relayout(node, { width: node.clientWidth, autosize: !printing });
};
window.addEventListener("beforeprint", fit(true));
window.addEventListener("afterprint", fit(false));
(async () => {
  for (const entry of figures) {
    await render(entry);
    await new Promise((next) => setTimeout(next, 0));
  }
  document.documentElement.dataset.drawn = String(figures.length);
})();
