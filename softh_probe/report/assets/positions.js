"use strict";
// Values over bins of the position in the document: layers by bins, of one result.

function positionFigure() {
  const run = RUNS[0];
  const found = run.by_position;
  if (!found) return;
  const rows = run.rows.map((_, r) => r);
  const shownOf = (metric) => ["entropy", ...run.label_sets.map((name) => `${metric}|${name}`)];
  const metrics = [["mutual_information_corrected", METRICS.mutual_information_corrected], ...Object.entries(METRICS).filter(([m]) => m !== "mutual_information_corrected")]
    .filter(([metric]) => shownOf(metric).some((key) => found.series[key]));
  const labelSet = choice("position-set", [...run.label_sets.map((name) => [name, plain(name)]), ["", "none: entropy"]], () => redraw("by-position"));
  const metric = choice("position-metric", metrics, () => redraw("by-position"));
  figure("by-position", "", (room) => {
    const shownMetric = labelSet() === "" ? "entropy" : metric();
    const factor = scaleOf(shownMetric, run.log_m);
    const series = found.series[`${shownMetric}|${labelSet()}`] || found.bins.map(() => null);
    const at = (r, b) => (series[b] && isKnown(series[b][rows[r]]) ? series[b][rows[r]] * factor : null);
    const names = rows.map((r) => text(run.rows[r], 24));
    const every = everyOf(found.bins.length, ticksIn(room - 40, found.bins));
    const marked = found.bins.map((_, b) => b).filter((b) => b % every === 0);
    return {
      traces: [{
        type: "heatmap", x: found.bins.map((_, b) => b), y: rows.map((_, r) => r), z: rows.map((_, r) => found.bins.map((_, b) => at(r, b))),
        colorscale: "Viridis", xgap: 1, ygap: 1, hoverongaps: false,
        text: rows.map((_, r) => found.bins.map((bin, b) => `<b>${names[r]}</b><br>position ${bin} (${found.positions[b].toLocaleString("en")} positions)<br>${shown(at(r, b))} ${unitOf(shownMetric)}`)),
        hovertemplate: "%{text}<extra></extra>",
        colorbar: COLOUR_BAR,
      }],
      layout: heatLayout(
        unitOf(shownMetric),
        { tickvals: marked, ticktext: marked.map((b) => found.bins[b]), title: { text: "position in the document", standoff: 8 } },
        { ...layerTickLabels(names), title: { text: "layer", standoff: 8 } },
      ),
    };
  }, 180 + 16 * Math.min(40, rows.length));
}

/** At most some 20 names beside the rows of a heat map. */
function layerTickLabels(names) {
  const step = Math.ceil(names.length / 20);
  const chosen = names.map((_, r) => r).filter((r) => r % step === 0);
  return { tickvals: chosen, ticktext: chosen.map((r) => names[r]) };
}
