"use strict";
// One result with several numbers of anchors or temperatures: a line for each, over the layers.

function anchorFigure() {
  const of = DATA.anchors || [];
  if (!of.length) return;
  const [first] = of;
  const has = (metric, labelSet) => of.some((one) => one.series[`${metric}|${labelSet}`]);
  const metrics = Object.entries(METRICS).filter(([metric]) => first.label_sets.some((name) => has(metric, name)));
  const labelSet = choice("anchor-set", [["", "none: entropy"], ...first.label_sets.map((name) => [name, plain(name)])], () => redraw("by-anchors"));
  const metric = choice("anchor-metric", metrics, () => redraw("by-anchors"));
  const entries = of.map((one, i) => ({ name: one.title, colour: runColour(i), dash: runDash(i) }));
  keys("anchor-keys", entries, () => redraw("by-anchors"));
  figure("by-anchors", "", (room) => {
    const shownMetric = labelSet() === "" ? "entropy" : metric();
    const traces = of.flatMap((one, i) => {
      const found = values(one, shownMetric, labelSet());
      if (!found || entries[i].hidden) return [];
      const texts = one.rows.map((row, r) => `${text(one.title)}<br><b>${text(row)}</b><br>${spreadOf(found, r)} ${unitOf(shownMetric)}`);
      return lineWithBand(one.layers, found.v, found.s, { colour: runColour(i), dash: runDash(i), texts, error: found.e });
    });
    return {
      traces,
      layout: {
        xaxis: layerTicks(first.rows, first.layers, room),
        yaxis: { title: { text: `${shownMetric === "entropy" ? "H(Z)" : METRICS[shownMetric]} (${unitOf(shownMetric)})`, standoff: 8 } },
      },
    };
  }, 360);
}
