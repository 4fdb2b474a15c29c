"use strict";
// Correlations with benchmarks: a heat map, the models behind a cell, and a table.
const KIND_NAMES = { spearman: "Spearman", pearson: "Pearson", partial_spearman: "Spearman, given controls", partial_pearson: "Pearson, given controls" };
const SIGNIFICANT = 0.05;
const ROW_HEIGHT = 19;
const MAP_MARGINS = 150;
const NARROW = 520;
/** Room that a number takes in a cell. */
const CELL = 46;
/** From falling to rising together; the middle is the paper's. */
const DIVERGING = { light: ["#3f86c9", "#f7f7f7", "#dd6a55"], dark: ["#2d6cab", "#22272e", "#b04a38"] };

const metricName = ([labelSet, metric]) => `${METRICS[metric] || plain(metric)}${labelSet ? ` · ${plain(labelSet)}` : ""}`;
/** The same for a narrow screen: both parts are cut, so that neither is lost. */
const shortName = ([labelSet, metric]) => [text(METRICS[metric] || plain(metric), 13), ...(labelSet ? [text(plain(labelSet), 14)] : [])].join(" · ");
const signed = (value, digits = 2) => (isKnown(value) ? value.toFixed(digits).replace("-", "−") : "–");
const withInterval = (low, high) => (isKnown(low) && isKnown(high) ? `[${signed(low)}, ${signed(high)}]` : "");

function buildCorrelations() {
  const { lines, metrics, benchmarks, kinds, groups, models } = DATA;
  const at = new Map(lines.map((line) => [`${line.group}|${line.metric}|${line.benchmark}`, line]));
  const kind = choice("kind", kinds.map((k) => [k, KIND_NAMES[k]]), () => { redraw("map"); tell(); fill(); });
  const group = choice("group", groups.map((name, g) => [String(g), name]), () => { redraw(); tell(); fill(); });
  const metric = choice("scatter-metric", metrics.map((m, i) => [String(i), metricName(m)]), () => { redraw("scatter"); tell(); });
  const benchmark = choice("scatter-benchmark", benchmarks.map((name, i) => [String(i), name]), () => { redraw("scatter"); tell(); });
  const lineOf = (m, b) => at.get(`${group()}|${m}|${b}`);

  function choose(m, b) {
    document.getElementById("scatter-metric").value = String(m);
    document.getElementById("scatter-benchmark").value = String(b);
    redraw("scatter");
    tell();
  }

  const describe = (line, k) => {
    const [r, p, low, high, q] = line[k] || [];
    return `${KIND_NAMES[k]} ${signed(r)} ${withInterval(low, high)}, p ${shownP(p)}, q ${shownP(q)}`;
  };

  function tell() {
    const line = lineOf(metric(), benchmark());
    const name = `${metricName(metrics[metric()])} and ${benchmarks[benchmark()]}`;
    document.getElementById("said").textContent = line
      ? `${name}: ${line.n} models. ${kinds.filter((k) => line[k] && isKnown(line[k][0])).map((k) => describe(line, k)).join("; ")}. Hover names a model.`
      : `${name}: too few models, or values that do not vary.`;
  }

  const map = figure("map", "", (room) => {
    const narrow = room + MARGINS < NARROW;
    const cells = metrics.map((_, m) => benchmarks.map((__, b) => lineOf(m, b)));
    const numbers = (room - (narrow ? 60 : MAP_MARGINS)) / benchmarks.length > CELL;
    const isMarked = (line) => line && line[kind()] && isKnown(line[kind()][4]) && line[kind()][4] < SIGNIFICANT;
    const colours = DIVERGING[onDark() ? "dark" : "light"];
    const layout = heatLayout(
      `${KIND_NAMES[kind()]} correlation`,
      { tickvals: benchmarks.map((_, b) => b), ticktext: benchmarks.map((name) => text(name, narrow ? 12 : 24)), title: { text: "" } },
      { tickvals: metrics.map((_, m) => m), ticktext: metrics.map((key) => (narrow ? shortName(key) : text(metricName(key)))), tickfont: { size: narrow ? 10 : 12 }, autorange: "reversed" },
    );
    layout.xaxis.tickangle = (room - (narrow ? 60 : MAP_MARGINS)) / benchmarks.length < 80 ? -40 : 0;
    return {
      traces: [{
        type: "heatmap", x: benchmarks.map((_, b) => b), y: metrics.map((_, m) => m), zmin: -1, zmax: 1,
        z: cells.map((row) => row.map((line) => (line && line[kind()] ? line[kind()][0] : null))),
        colorscale: colours.map((colour, i) => [i / 2, colour]), xgap: 1, ygap: 1, colorbar: COLOUR_BAR,
        text: cells.map((row) => row.map((line) => (line && line[kind()] ? `${numbers ? signed(line[kind()][0]) : ""}${isMarked(line) ? "*" : ""}` : ""))),
        texttemplate: "%{text}", textfont: { size: 11 },
        hovertext: cells.map((row, m) => row.map((line, b) => `<b>${text(metricName(metrics[m]))}</b><br>${text(benchmarks[b])}<br>${line ? kinds.map((k) => describe(line, k)).join("<br>") + `<br>${line.n} models` : "not known"}`)),
        hovertemplate: "%{hovertext}<extra></extra>",
      }],
      layout: { ...layout, hoverlabel: { align: "left" } },
    };
  }, 150 + ROW_HEIGHT * metrics.length);
  map.onClick = (event) => {
    const { x, y } = event.points[0];
    choose(y, x);
    document.getElementById("scatter").scrollIntoView({ block: "nearest" });
  };

  const count = new Map();
  for (const { family } of models) count.set(family, (count.get(family) || 0) + 1);
  const named = [...count.keys()].sort((a, b) => count.get(b) - count.get(a));
  const shownAlone = named.slice(0, named.length > COLOURS.length ? COLOURS.length - 1 : COLOURS.length);
  const families = shownAlone.map((family, i) => ({ name: family, colour: COLOURS[i], has: (of) => of === family }));
  if (named.length > shownAlone.length) families.push({ name: "other families", colour: COLOURS[COLOURS.length - 1], has: (of) => !shownAlone.includes(of) });
  if (families.length > 1) keys("scatter-keys", families, () => redraw("scatter"));
  figure("scatter", "", () => {
    const x = DATA.values[metric()], y = DATA.scores[benchmark()];
    const isOf = (i) => group() === "0" || models[i].family === groups[group()];
    return {
      traces: families.filter((family) => !family.hidden).map((family) => {
        const of = models.map((_, i) => i).filter((i) => family.has(models[i].family) && isOf(i) && isKnown(x[i]) && isKnown(y[i]));
        return {
          type: "scatter", mode: "markers", x: of.map((i) => x[i]), y: of.map((i) => y[i]), marker: { size: 9, color: ink(family.colour), opacity: 0.8 },
          text: of.map((i) => `<b>${text(models[i].name)}</b><br>${text(models[i].family)}${models[i].size ? ` · ${text(models[i].size)}` : ""}<br>${text(benchmarks[benchmark()])} ${shown(y[i])}<br>${text(metricName(metrics[metric()]))} ${shown(x[i])}`),
          hovertemplate: "%{text}<extra></extra>",
        };
      }),
      layout: { xaxis: { title: { text: text(metricName(metrics[metric()])), standoff: 8 } }, yaxis: { title: { text: text(benchmarks[benchmark()]), standoff: 8 } } },
    };
  }, 430);

  const search = document.getElementById("search");
  const table = document.getElementById("correlation-table");
  function fill() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const ofGroup = lines.filter((line) => String(line.group) === group());
    const written = (line) => `${metricName(metrics[line.metric])} ${metrics[line.metric].join(" ")} ${benchmarks[line.benchmark]}`.toLowerCase();
    const chosen = ofGroup.filter((line) => words.every((word) => written(line).includes(word)));
    document.getElementById("found").textContent = `${chosen.length} of ${ofGroup.length}`;
    const size = (line) => (line[kind()] && isKnown(line[kind()][0]) ? Math.abs(line[kind()][0]) : -1);
    chosen.sort((a, b) => size(b) - size(a));
    fillTable(table, ["Metric", "Benchmark", "n", ...kinds.flatMap((k) => [KIND_NAMES[k], "p", "q"])], chosen.map((line) => {
      const cells = [
        { value: metricName(metrics[line.metric]), text: metricName(metrics[line.metric]) },
        { value: benchmarks[line.benchmark], text: benchmarks[line.benchmark], kind: "name" },
        { value: line.n, text: String(line.n) },
        ...kinds.flatMap((k) => {
          const [r, p, low, high, q] = line[k] || [];
          return [
            { value: r, text: signed(r, 3), small: withInterval(low, high), kind: isKnown(q) && q < SIGNIFICANT ? "beyond" : "within" },
            { value: p, text: shownP(p) }, { value: q, text: shownP(q) },
          ];
        }),
      ];
      cells.onClick = () => { choose(line.metric, line.benchmark); document.getElementById("scatter").scrollIntoView(); };
      return cells;
    }));
  }
  search.addEventListener("input", fill);

  const best = lines.filter((line) => line.group === 0 && line[kind()] && isKnown(line[kind()][0])).sort((a, b) => Math.abs(b[kind()][0]) - Math.abs(a[kind()][0]))[0];
  if (best) {
    document.getElementById("scatter-metric").value = String(best.metric);
    document.getElementById("scatter-benchmark").value = String(best.benchmark);
  }
  tell();
  return [fill];
}
