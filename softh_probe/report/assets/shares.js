"use strict";
// Shares of the ceiling that each order of n-grams adds, stacked over the layers of one result.
const LEFT = { name: "left of the ceiling", colour: "#7F7F7F" };

/** Label sets of a direction from unigrams on, up to the first order that is not there. */
function levelsOf(direction) {
  const levels = ORDERS.map((order) => `${direction}_${order}`);
  const end = levels.findIndex((level) => !(`information_share|${level}` in ALL_SERIES));
  return end < 0 ? levels : levels.slice(0, end);
}

function sharesFigures() {
  const run = RUNS[0];
  const directions = ["input", "output"].map((d) => [d, levelsOf(d)]).filter(([, levels]) => levels.length);
  if (!directions.length) return;
  const versions = [["", "raw shares"], ["_corrected", "shares corrected for chance"]].filter(([suffix]) =>
    directions.some(([, levels]) => run.series[`information_share${suffix}|${levels[0]}`].v.some(isKnown)));
  const version = choice("shares-version", versions, () => redraw("shares"));
  const orders = ORDERS.filter((order) => directions.some(([d, levels]) => levels.includes(`${d}_${order}`)));
  keys("shares-keys", [...orders.map((order, i) => ({ name: order, colour: COLOURS[i], area: true })), { ...LEFT, area: true }]);
  columns("shares", directions.length);
  for (const [direction, levels] of directions) {
    figure("shares", direction, (room) => ({
      traces: stackedShares(run, direction, levels, version()),
      layout: {
        xaxis: layerAxis(room), yaxis: { tickformat: ".0%", title: { text: "share of the ceiling", standoff: 8 } },
        shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: "#7F7F7F", dash: "dot", width: 1 } }],
      },
    }), 340);
  }
}

/** The upper edge of each order is the share of all up to it; the areas between them are the shares. */
function stackedShares(run, direction, levels, suffix) {
  const rows = run.rows.map((_, r) => r);
  const parts = [...levels.map((level, i) => ({ of: run.series[`information_share${suffix}|${level}`], name: level.replace(`${direction}_`, ""), colour: COLOURS[i] })),
    { of: run.series[`residual${suffix}|${direction}`], ...LEFT }];
  const x = rows.map((r) => depths(run)[r]);
  let below = rows.map(() => 0);
  return [{ x, y: below, mode: "lines", line: { width: 0 }, hoverinfo: "skip" }, ...parts.map(({ of, name, colour }) => {
    below = below.map((v, i) => (isKnown(v) && isKnown(of.v[rows[i]]) ? v + of.v[rows[i]] : null));
    const texts = rows.map((r) => `<b>${text(run.rows[r])}</b><br>${name}: ${spreadOf(of, r)}`);
    return {
      x, y: below, mode: "lines+markers", line: { color: ink(colour), width: 1 }, marker: { size: 4, color: ink(colour) }, fill: "tonexty",
      fillcolor: ink(colour) + (colour === LEFT.colour ? "40" : "b0"), text: texts, hovertemplate: "%{text}<extra></extra>",
    };
  })];
}
