"use strict";
// One result, or several side by side: overlaid by layer, and by relative depth where models are not equally deep.
const RUNS = DATA.runs || [];
const ONE = DATA.kind === "run";
// Inputs, outputs, columns: where panels stand in as many columns as there are orders, input above output.
const rank = (name) => (name.startsWith("input_") ? 0 : name.startsWith("output_") ? 1 : 2);
const SETS = [...new Set(RUNS.flatMap((run) => run.label_sets))].sort((a, b) => rank(a) - rank(b));
const N_INPUTS = SETS.filter((name) => rank(name) === 0).length;
const ALL_SERIES = Object.assign({}, ...RUNS.map((run) => run.series));
/** The series of some metrics in all results, for the keys of their bands. */
const seriesOf = (...metrics) => RUNS.flatMap((run) => Object.keys(run.series).filter((key) => metrics.includes(key.split("|")[0])).map((key) => run.series[key]));
const LINES = [
  { metric: "mutual_information_max", name: "ceiling: if every label were unique", colour: "#7F7F7F", dash: "dot", width: 1.5 },
  { metric: "mutual_information_null", name: "by chance", colour: "#E69F00", area: true, width: 1.5 },
  { metric: "mutual_information", name: "raw", colour: "#0072B2", width: 2.2 },
  { metric: "mutual_information_corrected", name: "corrected", colour: "#009E73", dash: "dash", width: 2.2 },
];

const runColour = (i) => COLOURS[i % COLOURS.length];
const runDash = (i) => DASHES[Math.floor(i / COLOURS.length) % DASHES.length];

/** A series in the chosen unit: {v, s, e, se} or null where the run has none. What chance gives has its sd over relabelings as s. */
function values(run, metric, labelSet) {
  const series = run.series[`${metric}|${labelSet}`];
  if (!series) return null;
  const factor = scaleOf(metric, run.log_m);
  const relabelled = metric === "mutual_information_null" && run.series[`${metric}_sd|${labelSet}`];
  if (relabelled) return { v: scaled(series.v, factor), s: scaled(relabelled.v, factor), e: null, se: null, relabelled: true };
  return Object.fromEntries(["v", "s", "e", "se"].map((name) => [name, series[name] ? scaled(series[name], factor) : null]));
}

/** Where the layers of a run stand: their indices in the model, or their relative depths. */
const depths = (run) => run.layers.map((layer) => (DATA.by_depth ? layer / Math.max(1, run.depth) : layer));
/** Whether layers were left out, so that marks have to show which were measured. */
const sparse = (run) => run.rows.length < run.depth;
const ROW_AT = new Map(RUNS.toReversed().flatMap((run) => run.layers.map((layer, r) => [layer, run.rows[r]])));
const ALL_LAYERS = [...ROW_AT.keys()].sort((a, b) => a - b);
const layerAxis = (room) => DATA.by_depth
  ? { range: [-0.02, 1.02], title: { text: room < 400 ? "relative depth" : DEPTH_AXIS, standoff: 8 } }
  : layerTicks(ALL_LAYERS.map((layer) => ROW_AT.get(layer)), ALL_LAYERS, room);

/** Traces of one metric, a line a run. */
function overlaid(metric, labelSet, options = {}) {
  return RUNS.flatMap((run, i) => {
    const found = values(run, metric, labelSet);
    if (!found || run.hidden) return [];
    const texts = run.rows.map((row, r) => (ONE ? "" : `${text(run.title)}<br>`) + `<b>${text(row)}</b><br>${spreadOf(found, r)} ${unitOf(metric)}`);
    return lineWithBand(depths(run), found.v, found.s, { colour: runColour(i), dash: runDash(i), texts, error: found.e, se: found.se, ...options });
  });
}

function entropyFigure() {
  bandKeys("entropy-keys", seriesOf("entropy"));
  figure("entropy", "", (room) => ({
    traces: overlaid("entropy", ""),
    layout: { xaxis: layerAxis(room), yaxis: { title: { text: `H(Z) (${unitName()})`, standoff: 8 } } },
  }), 360);
}

/** The most that any panel shows, so that panels of one kind share an axis. */
function most(metrics, sets) {
  const found = RUNS.filter((run) => !run.hidden).flatMap((run) => metrics.flatMap((m) => sets.flatMap((s) => {
    const of = values(run, m, s);
    return of ? of.v.map((v, i) => (v === null ? 0 : v + Math.max((of.s && of.s[i]) || 0, Z95 * ((of.se && of.se[i]) || 0)))) : [];
  })));
  return Math.max(...found, 1e-6) * 1.04;
}

/** What there is to know of a label set, in bits whatever the unit; several where results differ, empty where unknown. */
function labelBits(name) {
  const of = RUNS.flatMap((run) => { const found = run.series[`label_entropy|${name}`]; return found ? found.v.filter(isKnown).slice(0, 1).map((v) => v * run.log_m / Math.LN2) : []; });
  const told = [...new Set(of.map((bits) => bits.toFixed(2)))];
  return told.length ? `H(X) = ${told.join(", ")} bits` : "";
}

function informationFigures() {
  if (!SETS.length) return;
  let metric = () => "mutual_information";
  if (ONE) {
    keys("information-keys", LINES.filter((line) => SETS.some((s) => `${line.metric}|${s}` in ALL_SERIES)), () => redraw("information"));
  } else {
    metric = choice("information-metric", Object.entries(METRICS).filter(([m]) => SETS.some((s) => `${m}|${s}` in ALL_SERIES)), () => redraw("information"));
  }
  bandKeys("information-keys", seriesOf("mutual_information"));
  columns("information", N_INPUTS > 1 ? N_INPUTS : Math.min(3, SETS.length));
  const height = SETS.length > 1 ? 310 : 360;
  const hasNgrams = SETS.some((name) => rank(name) < 2);
  for (const name of SETS) {
    figure("information", plain(name), (room) => {
      const traces = ONE ? informationLines(RUNS[0], name) : overlaid(metric(), name);
      // N-grams share an axis; a column has one of its own, on which what it holds is not dwarfed by the ceiling.
      const alike = rank(name) < 2 ? SETS.filter((s) => rank(s) < 2) : [name];
      const drawn = LINES.filter((l) => !l.hidden && (rank(name) < 2 || l.metric !== "mutual_information_max"));
      const top = ONE ? most(drawn.map((l) => l.metric), alike) : most([metric()], alike);
      const title = ONE ? `I(X;Z) (${unitName()})` : `${metric() === "conditional_entropy" ? "H(Z|X)" : RATIOS.has(metric()) ? METRICS[metric()] : "I(X;Z)"} (${unitOf(metric())})`;
      return { traces, layout: { xaxis: layerAxis(room), yaxis: { range: [0, top], title: { text: title, standoff: 8 } } } };
    }, height, [labelBits(name), rank(name) < 2 || !hasNgrams ? "" : "on a vertical scale of its own; n-grams share one"].filter(Boolean).join("; "));
  }
}

function informationLines(run, name) {
  const of = Object.fromEntries(LINES.map((line) => [line.metric, values(run, line.metric, name)]));
  const { p } = run.series[`mutual_information|${name}`] || {};
  const chance = (r) => (p && p[r] !== null ? `<br>p = ${shownP(p[r])}` : "");
  const texts = run.rows.map((row, r) => `<b>${text(row)}</b>` + LINES.toReversed().map((line) => of[line.metric]
    ? `<br>${line.name.split(":")[0]}: ${spreadOf(of[line.metric], r)}` : "").join("") + chance(r));
  return LINES.flatMap((line) => {
    const found = of[line.metric];
    if (!found || line.hidden) return [];
    const error = line.metric === "mutual_information" || line.metric === "mutual_information_corrected" ? found.e : null;
    const style = { colour: line.colour, dash: line.dash, width: line.width, texts, markers: sparse(run), error, se: found.se, spread: found.relabelled ? "chance" : "s" };
    const traces = lineWithBand(depths(run), found.v, line.metric === "mutual_information" || found.relabelled ? found.s : null, style);
    if (line.area) Object.assign(traces[traces.length - 1], { fill: "tozeroy", fillcolor: faint(line.colour, CHANCE) });
    return traces;
  });
}

function optimalityFigures() {
  const orders = ORDERS.filter((order) => `optimality|${order}` in ALL_SERIES);
  if (!orders.length) return;
  const lines = [
    { metric: "optimality", name: "raw", colour: "#0072B2" },
    { metric: "optimality_corrected", name: "corrected", colour: "#009E73", dash: "dash" },
  ];
  let metric = () => "optimality";
  if (ONE) keys("optimality-keys", lines, () => redraw("optimality"));
  else metric = choice("optimality-metric", lines.map((line) => [line.metric, line.name]), () => redraw("optimality"));
  bandKeys("optimality-keys", seriesOf("optimality"));
  columns("optimality", orders.length);
  for (const order of orders) {
    figure("optimality", plain(order), (room) => {
      const traces = ONE
        ? lines.filter((l) => !l.hidden).flatMap((l) => overlaid(l.metric, order, { colour: l.colour, dash: l.dash || "solid", markers: sparse(RUNS[0]) }))
        : overlaid(metric(), order);
      const top = Math.max(1.05, most(ONE ? lines.filter((l) => !l.hidden).map((l) => l.metric) : [metric()], orders));
      const bound = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: "#7F7F7F", dash: "dot", width: 1 } };
      return { traces, layout: { shapes: [bound], xaxis: layerAxis(room), yaxis: { range: [0, top], title: { text: "optimality (ratio)", standoff: 8 } } } };
    }, orders.length > 1 ? 310 : 360);
  }
}

function planeFigures() {
  const orders = ORDERS.filter((order) => `optimality|${order}` in ALL_SERIES);
  if (!orders.length) return;
  const metric = choice("plane-metric", ["mutual_information", "mutual_information_corrected"].map((m) => [m, METRICS[m]]), () => redraw("plane"));
  columns("plane", orders.length);
  for (const order of orders) {
    figure("plane", plain(order), () => {
      const top = most([metric()], [`input_${order}`, `output_${order}`]);
      const traces = RUNS.flatMap((run, i) => run.hidden ? [] : planePath(
        run.rows, run.layers, values(run, metric(), `input_${order}`), values(run, metric(), `output_${order}`), ONE ? "" : run.title, ONE ? "#7F7F7F" : runColour(i)));
      return planeLayout(traces, top);
    }, orders.length > 2 ? 310 : 400);
  }
}

/** Layers as points in the plane, joined in order; `colour` is that of the line. */
function planePath(rows, layers, x, y, title, colour) {
  if (!x || !y) return [];
  const texts = rows.map((row, r) => (title ? `${text(title)}<br>` : "") + `<b>${text(row)}</b><br>input: ${spreadOf(x, r)}<br>output: ${spreadOf(y, r)} ${unitName()}`);
  return [{
    x: x.v, y: y.v, mode: "lines+markers", line: { color: ink(colour), width: 1.2 }, text: texts, hovertemplate: "%{text}<extra></extra>",
    marker: { size: 9, color: layers, colorscale: pointScale(), cmin: layers[0], cmax: Math.max(layers[0] + 1, layers[layers.length - 1]), line: { color: title ? ink(colour) : "#8888", width: title ? 2 : 0.5 } },
  }];
}

function planeLayout(traces, top) {
  const bound = { type: "line", x0: 0, y0: 0, x1: top, y1: top, line: { color: "#7F7F7F", dash: "dot", width: 1 }, layer: "below" };
  return {
    traces,
    layout: {
      shapes: [bound],
      xaxis: { range: [0, top], title: { text: `I(input; Z) (${unitName()})`, standoff: 8 } },
      yaxis: { range: [0, top], title: { text: `I(output; Z) (${unitName()})`, standoff: 8 } },
    },
  };
}

function labelFigures() {
  for (const of of RUNS[0].labels) {
    const title = `${plain(of.label_set)}${of.n_labels > of.labels.length ? `: the ${of.labels.length} most frequent of ${of.n_labels.toLocaleString("en")} labels` : ""}`;
    figure("labels", title, (room) => {
      const factor = scaleOf("entropy", RUNS[0].log_m);
      const [longest, wide] = room < 480 ? [10, 90] : [24, 150];
      const names = of.labels.map((label, i) => `${text(label, longest)} (${of.counts[i].toLocaleString("en")})`);
      return {
        traces: [{
          type: "heatmap", x: RUNS[0].layers, z: of.values.map((line) => scaled(line, factor)), colorscale: "Viridis", xgap: 1, ygap: 1,
          text: of.values.map((line, l) => line.map((v, r) => `<b>${names[l]}</b><br>${text(RUNS[0].rows[r])}<br>${shown(v === null ? null : v * factor)} ${unitName()}`)),
          hovertemplate: "%{text}<extra></extra>",
          colorbar: COLOUR_BAR,
        }],
        layout: heatLayout(
          `H(Z|x) (${unitName()})`,
          layerTicks(RUNS[0].rows, RUNS[0].layers, room - wide),
          { tickvals: names.map((_, i) => i), ticktext: names, autorange: "reversed", title: { text: "label (positions)", standoff: 8 } },
        ),
      };
    }, 140 + 22 * of.labels.length);
  }
}

/** What each attention head holds: a heat map of layers and heads of each result that has them. */
function headFigures() {
  const all = DATA.heads || [];
  if (!all.length) return;
  const name = ([metric, labelSet]) => (labelSet ? `${METRICS[metric]}: ${plain(labelSet)}` : "entropy");
  const present = Object.keys(Object.assign({}, ...all.map((one) => one.series))).map((key) => [key, name(key.split("|"))]);
  const key = choice("heads-key", present, () => redraw("heads"));
  for (const one of all) {
    const height = Math.max(...Object.values(one.series).map((lines) => lines.length));
    figure("heads", DATA.kind === "comparison" ? one.title : "", (room) => {
      const metric = key().split("|")[0];
      const factor = scaleOf(metric, one.log_m);
      const lines = one.series[key()] || [];
      // One scale for all results, whose colours stand side by side.
      const known = all.flatMap(({ series, log_m }) => (series[key()] || []).flat().filter((v) => v !== null).map((v) => v * scaleOf(metric, log_m)));
      return {
        traces: [{
          type: "heatmap", x: one.layers, z: lines.map((line) => scaled(line, factor)), colorscale: "Viridis", xgap: 1, ygap: 1,
          zmin: Math.min(...known), zmax: Math.max(...known),
          text: lines.map((line, h) => line.map((v, i) => `<b>layer.${one.layers[i]}.head.${h}</b><br>${shown(v === null ? null : v * factor)} ${unitOf(metric)}`)),
          hovertemplate: "%{text}<extra></extra>",
          colorbar: COLOUR_BAR,
        }],
        layout: heatLayout(
          `${metric === "entropy" ? "H(Z)" : "I(X;Z)"} (${unitOf(metric)})`,
          layerTicks(one.layers.map((layer) => `layer.${layer}`), one.layers, room),
          { title: { text: "head (from 0)", standoff: 8 }, dtick: Math.max(1, Math.ceil(height / 16)), tick0: 0 },
        ),
      };
    }, 160 + 16 * height);
  }
}

function layerTable() {
  const present = Object.entries(METRICS).filter(([m]) => SETS.some((s) => `${m}|${s}` in ALL_SERIES));
  const metric = choice("table-metric", present.length ? present : [["", "none"]], () => fill());
  const fill = () => {
    const columns = tableColumns(SETS, metric(), ALL_SERIES).flatMap(([heading, key]) => [
      [heading, key],
      ...(RUNS.some((run) => run.series[key] && run.series[key].p) ? [[`${heading}: p`, key, true]] : []),
    ]).concat("anisotropy|" in ALL_SERIES ? [["anisotropy", "anisotropy|"]] : []);
    const rows = RUNS.flatMap((run) => run.rows.map((row, r) => [
      { value: depths(run)[r], text: row },
      ...(ONE ? [] : [{ value: run.title, text: run.title, kind: "name" }]),
      ...columns.map(([, key, isP]) => {
        const series = run.series[key];
        if (isP) return { value: series && series.p ? series.p[r] : null, text: shownP(series && series.p && series.p[r]) };
        return series ? valueCell(series.v[r], key !== "anisotropy|" && series.s ? series.s[r] : null, scaleOf(key.split("|")[0], run.log_m), series.e && series.e[r], series.se && series.se[r]) : { value: null, text: "–" };
      }),
    ]));
    fillTable(document.getElementById("layer-table"), ["layer", ...(ONE ? [] : [DATA.kind === "sites" ? "site" : "result"]), ...columns.map(([heading]) => heading)], rows);
  };
  return fill;
}

/** What the table of differences says first, judged by the spread over anchor sets. */
function anchorWords({ paired, series }) {
  return anchorSpreadKnown(series)
    ? `± is the anchor spread of the difference: ${paired
      ? "its sd over the anchor sets, with each of which both results were measured"
      : "the sd over anchor sets of both results, combined, since their anchors are not the same"}. ` +
      `Bold is beyond ${ANCHOR_SDS} of these sd, ≈ marks what is within: another draw of anchors could undo it.`
    : "One anchor set: the spread over anchors is unknown (--anchor-sets 8), so that no difference is marked.";
}

/** Whether any difference has a spread over anchor sets. */
const anchorSpreadKnown = (series) => Object.values(series).some((of) => of.s.some(isKnown));

/** The same, judged by noise over documents; the layers in which each column differs are counted. */
function documentWords(columns, series) {
  const counts = columns.filter(([, key]) => series[key].h).map(([heading, key]) => {
    const known = series[key].h.filter(isKnown);
    return `${heading} in ${known.filter((p) => p < ALPHA).length} of ${known.length}`;
  });
  return "± is the standard error over documents; what documents do to both results alike cancels. p is corrected for the number of layers (Holm). " +
    "Bold is beyond noise (p < 0.05), ≈ marks what is within it. " + (counts.length ? `Layers beyond noise: ${counts.join(", ")}.` : "");
}

const ALPHA = 0.05;
/** Differences within that many standard deviations over anchor sets are not told from the choice of anchors. */
const ANCHOR_SDS = 2;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`;

function anchorCell({ d, s, p }, r, factor) {
  const own = p ? p[r] : s[r];
  if (!isKnown(own)) return { value: d[r] * factor, text: signed(d[r] * factor) };
  const within = Math.abs(d[r]) <= ANCHOR_SDS * own;
  return {
    value: d[r] * factor, text: (within ? "≈ " : "") + signed(d[r] * factor), small: `± ${(own * factor).toFixed(4)}`, kind: within ? "within" : "beyond",
    title: within ? "within two sd over anchor sets" : "beyond two sd over anchor sets",
  };
}

function documentCell({ d, se, h }, r, factor) {
  if (!h || !isKnown(h[r])) return { value: d[r] * factor, text: signed(d[r] * factor), small: "noise not measured" };
  const within = h[r] >= ALPHA;
  return {
    value: d[r] * factor, text: (within ? "≈ " : "") + signed(d[r] * factor), kind: within ? "within" : "beyond",
    small: `± ${(se[r] * factor).toFixed(4)}, p ${h[r] < 0.0001 ? "< 0.0001" : h[r].toFixed(4)}`,
    title: within ? "within noise over documents" : "beyond noise over documents",
  };
}

function differenceTable() {
  const others = DATA.differences.map(({ first, other }, i) => [String(i), `${RUNS[other].title} − ${RUNS[first].title}`]);
  const measured = DATA.differences.some((one) => Object.values(one.series).some((of) => of.h));
  const ofAnchors = DATA.differences.some((one) => anchorSpreadKnown(one.series));
  const which = choice("difference-run", others, () => fill());
  const noise = choice("difference-noise", [...(measured ? [["documents", "over documents"]] : []), ...(ofAnchors || !measured ? [["anchors", "over anchor sets"]] : [])], () => fill());
  const present = Object.entries(METRICS).filter(([m]) => SETS.some((s) => `${m}|${s}` in ALL_SERIES));
  const metric = choice("difference-metric", present.length ? present : [["", "none"]], () => fill());
  const fill = () => {
    const one = DATA.differences[Number(which())];
    const { interpolated, tokens_differ: tokensDiffer, same_labels: sameLabels, series } = one;
    const columns = tableColumns(SETS, metric(), series);
    const [first, other] = [RUNS[one.first], RUNS[one.other]];
    const byDocuments = noise() === "documents";
    const spreadKnown = anchorSpreadKnown(series);
    document.getElementById("differences-read").textContent =
      `${other.title} minus ${first.title}, ${interpolated ? "at the same relative depth, layer / (L + 1), interpolated between layers; final norms beside each other" : "in the same layer"}. ` +
      (tokensDiffer ? "Their tokens differ, so informations about tokens and n-grams are of other labels in each: compare their shape over depth, and their shares of H(X), not bits. " : "") +
      (byDocuments ? documentWords(columns, series) : anchorWords(one)) +
      (measured ? "" : " Noise over documents was not measured: softh-probe run --intervals does.") +
      (sameLabels === undefined ? "" : sameLabels
        ? " Both followed the same labels, so most of the error by sampling them is common to both and cancels; it is not added."
        : spreadKnown && !byDocuments ? " They followed different samples of labels: the standard errors of both by that are part of ± and of what ≈ is judged by." : "");
    const rows = first.rows.map((row, r) => [
      { value: first.layers[r], text: row },
      ...columns.map(([, key]) => (series[key].d[r] === null ? { value: null, text: "–" }
        : (byDocuments ? documentCell : anchorCell)(series[key], r, scaleOf(key.split("|")[0], first.log_m)))),
    ]);
    fillTable(document.getElementById("difference-table"), ["layer", ...columns.map(([heading]) => heading)], rows);
  };
  return fill;
}

/** Builds the page's figures; returns what fills its tables. */
function buildRuns() {
  if (!ONE) {
    const entries = RUNS.map((run, i) => ({ name: run.title, colour: runColour(i), dash: runDash(i) }));
    keys("run-keys", entries, () => { entries.forEach((entry, i) => { RUNS[i].hidden = entry.hidden; }); redraw(); });
  }
  const pointTables = pointFigures();
  entropyFigure();
  informationFigures();
  optimalityFigures();
  planeFigures();
  headFigures();
  if (DATA.kind !== "comparison") {
    sharesFigures();
    positionFigure();
    anchorFigure();
    labelFigures();
  }
  return DATA.kind === "comparison" ? [...pointTables, differenceTable(), layerTable()] : [layerTable()];
}
