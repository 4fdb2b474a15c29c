"use strict";
// Builds the page, a figure at a time so that it shows at once, and follows the unit, and the printer's width.
const tables = DATA.kind === "correlations" ? buildCorrelations() : DATA.kind === "sweep" ? buildSweep() : buildRuns();
tables.forEach((fill) => fill());
for (const input of document.querySelectorAll('input[name="unit"]')) {
  input.addEventListener("change", () => {
    unit = input.value;
    redraw();
    tables.forEach((fill) => fill());
  });
}
bandSwitch(Object.values(DATA.series || Object.assign({}, ...(DATA.runs || []).map((run) => run.series))));
DARK.addEventListener("change", () => redraw());
// Figures, and how many ticks they have, are drawn for a width: a sheet's while it is printed, and on light paper.
const drawn = () => figures.filter(({ node }) => node.data);
const fit = (printing) => () => {
  document.body.classList.toggle("printing", printing);
  drawn().forEach(render);
};
window.addEventListener("beforeprint", fit(true));
window.addEventListener("afterprint", fit(false));
let widthBefore = innerWidth;
let waiting = 0;
window.addEventListener("resize", () => {
  if (innerWidth === widthBefore) return; // a phone's bars come and go as it scrolls
  widthBefore = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => drawn().forEach(render), 200);
});
// Plotly takes most of the time that a page takes to open: text and tables can be read and used before it runs.
addEventListener("load", async () => {
  await new Promise((next) => setTimeout(next, 0));
  const plotly = element("script");
  plotly.text = document.getElementById("plotly").textContent;
  document.head.append(plotly);
  for (const entry of figures) {
    await render(entry);
    if (entry.onClick) entry.node.on("plotly_click", entry.onClick);
    await new Promise((next) => setTimeout(next, 0));
  }
  document.documentElement.dataset.drawn = String(figures.length);
});
