"use strict";
// A sweep: layers x steps, metrics through training, the information plane's path.
const CHECKPOINTS = DATA.checkpoints || [];
const MODELS = [...new Set(CHECKPOINTS.map((c) => c.model))];
const EVERY_METRIC = { entropy: "entropy", ...METRICS, optimality: "optimality", optimality_corrected: "optimality, corrected", entropy_document_sd: "entropy, sd over documents" };

const keyName = (key) => {
  const [metric, labelSet] = [key.slice(0, key.indexOf("|")), key.slice(key.indexOf("|") + 1)];
  return `${EVERY_METRIC[metric] || plain(metric)}${labelSet ? ` · ${plain(labelSet)}` : ""}`;
};
const metricOf = (key) => key.slice(0, key.indexOf("|"));
const stepName = (c) => (c.step === null || c.step === undefined ? c.checkpoint : c.step.toLocaleString("en"));
const ofModel = (model) => CHECKPOINTS.map((c, i) => [c, i]).filter(([c]) => c.model === model);
const shortName = (model) => String(model).replace(/\/+$/, "").split("/").pop();

/** The layers of one checkpoint, and the row that stands beside each of the `shown` ones. */
const layoutOf = (checkpoint) => DATA.layouts[CHECKPOINTS[checkpoint].layout];
/** What a checkpoint measured beside a shown layer: its own row, or null. */
const beside = (checkpoint, n) => layoutOf(checkpoint).beside[n];

function at(key, checkpoint, layer) {
  const series = DATA.series[key];
  const factor = scaleOf(metricOf(key), DATA.log_m);
  const value = (name) => {
    const found = series[name] && layer !== null ? packedAt(series[name], checkpoint, layer) : null;
    return found === null ? null : found * factor;
  };
  return { v: value("v"), s: value("s"), e: value("e"), se: value("se") };
}

function mapFigure() {
  const key = choice("map-key", Object.keys(DATA.series).map((k) => [k, keyName(k)]), () => redraw("map"));
  const model = choice("map-model", MODELS.map((m) => [m, shortName(m)]), () => redraw("map"));
  figure("map", "", (room) => {
    const chosen = ofModel(model());
    const { y, rowsOf, axis } = layersOf(chosen, 380);
    const steps = spacedTicks(chosen.map(([c]) => c), room);
    const rows = y.map((_, n) => chosen.map(([, i]) => rowsOf(i)[n]));
    const cells = rows.map((line) => line.map((row, n) => at(key(), chosen[n][1], row)));
    return {
      traces: [{
        type: "heatmap", y, z: cells.map((line) => line.map((cell) => cell.v)), colorscale: "Viridis",
        text: cells.map((line, r) => line.map((cell, n) => `<b>${text(chosen[n][0].checkpoint)}</b><br>${text(rows[r][n] === null ? "no such layer" : DATA.rows[rows[r][n]])}<br>${withSpread(cell.v, cell.s, cell.e, cell.se)} ${unitOf(metricOf(key()))}`)),
        hovertemplate: "%{text}<extra></extra>",
        colorbar: COLOUR_BAR,
      }],
      layout: heatLayout(
        unitOf(metricOf(key())),
        { ...steps, title: { text: chosen.some(([c]) => c.step !== null) ? "training step (checkpoints evenly spaced)" : "checkpoint", standoff: 8 } },
        { ...axis, range: undefined },
      ),
    };
  }, 490);
}

/** The layers of some checkpoints: where they stand (y), the row of each in a checkpoint, and the axis of some pixels upwards. */
function layersOf(chosen, room) {
  const layouts = new Set(chosen.map(([c]) => c.layout));
  if (layouts.size > 1) { // a model that grew in training
    const axis = DATA.by_depth ? { title: { text: "relative depth", standoff: 8 } } : layerTicks(DATA.labels, DATA.places, room, true);
    return { y: DATA.places, rowsOf: (i) => layoutOf(i).beside, axis };
  }
  const { rows, layers } = DATA.layouts[chosen[0][0].layout];
  return { y: layers, rowsOf: () => rows, axis: layerTicks(rows.map((row) => DATA.rows[row]), layers, room, true) };
}

/** Ticks of checkpoints that are spaced evenly: as many as fit into some pixels. */
function spacedTicks(checkpoints, room) {
  const names = checkpoints.map((c) => text(stepName(c), 16));
  const every = everyOf(checkpoints.length, ticksIn(room, checkpoints.map((c) => stepName(c).slice(0, 16))));
  const chosen = checkpoints.map((_, i) => i).filter((i) => i % every === 0);
  return { tickvals: chosen, ticktext: chosen.map((i) => names[i]), tickangle: 0 };
}

/** Positions of checkpoints on an axis of log steps, or evenly spaced where some have no step. */
function stepAxis(room) {
  const steps = CHECKPOINTS.map((c) => c.step);
  return steps.every(isKnown) ? logSteps(steps, 0.85 * room) // markers at the ends have room of their own
    : { x: CHECKPOINTS.map((_, i) => i), axis: { ...spacedTicks(CHECKPOINTS, room), title: { text: "checkpoint", standoff: 8 } } };
}

/** The course of the chosen metric in words, a line a model. */
function showCourse(key) {
  document.getElementById("steps-course").replaceChildren(...(DATA.courses[key] || []).map((line) => element("p", {}, line)));
}

function stepsFigure() {
  const key = choice("steps-key", Object.keys(DATA.series).map((k) => [k, keyName(k)]), () => redraw("steps"));
  const [first, last] = [DATA.places[0], DATA.places[DATA.places.length - 1]];
  const share = (n) => (DATA.places[n] - first) / (last - first || 1);
  const nearest = (d) => DATA.places.reduce((best, _, n) => (Math.abs(share(n) - d) < Math.abs(share(best) - d) ? n : best), 0);
  const few = [...new Set([0, 0.25, 0.5, 0.75, 1].map(nearest))];
  const boxes = document.getElementById("steps-layers");
  const chosen = new Set(few);
  const colourOf = (n) => colourAlong(share(n));
  const showKeys = () => {
    document.getElementById("steps-keys").replaceChildren();
    keys("steps-keys", [
      ...[...chosen].sort((a, b) => a - b).map((n) => ({ name: DATA.labels[n], colour: colourOf(n) })),
      ...(MODELS.length > 1 ? MODELS.map((m, i) => ({ name: shortName(m), colour: "#7F7F7F", dash: DASHES[i % DASHES.length] })) : []),
    ]);
    bandKeys("steps-keys", [DATA.series[key()]]);
    showCourse(key());
  };
  const select = element("select", { multiple: "", size: "5", "aria-label": "Layers" }, ...DATA.labels.map((label, n) => {
    const option = element("option", { value: String(n) }, label);
    option.selected = chosen.has(n);
    return option;
  }));
  select.addEventListener("change", () => {
    chosen.clear();
    for (const option of select.selectedOptions) chosen.add(Number(option.value));
    redraw("steps");
  });
  boxes.append(select);
  figure("steps", "", (room) => {
    showKeys();
    const { x, axis } = stepAxis(room);
    const traces = MODELS.flatMap((model, m) => [...chosen].sort((a, b) => a - b).flatMap((n) => {
      const points = ofModel(model).map(([c, i]) => ({ c, x: x[i], row: beside(i, n), ...at(key(), i, beside(i, n)) }));
      if (points.every((p) => p.v === null)) return [];
      const texts = points.map((p) => `<b>${text(p.row === null ? "no such layer" : DATA.rows[p.row])}</b><br>${text(p.c.checkpoint)}<br>${withSpread(p.v, p.s, p.e, p.se)} ${unitOf(metricOf(key()))}`);
      return lineWithBand(points.map((p) => p.x), points.map((p) => p.v), points.map((p) => p.s), {
        colour: colourOf(n), dash: DASHES[m % DASHES.length], texts, markers: points.length < 60, error: points.map((p) => p.e), se: points.map((p) => p.se),
      });
    }));
    return { traces, layout: { margin: { r: 36 }, xaxis: axis, yaxis: { title: { text: `${metricOf(key()).startsWith("mutual") ? "I(X;Z)" : plain(metricOf(key()))} (${unitOf(metricOf(key()))})`, standoff: 8 } } } };
  }, 420);
}

function pathFigure() {
  const orders = ORDERS.filter((order) => `optimality|${order}` in DATA.series);
  if (!orders.length) return;
  const slider = document.getElementById("checkpoint");
  const order = choice("plane-order", orders.map((o) => [o, o]), () => redraw("path"));
  const metric = choice("plane-metric", ["mutual_information", "mutual_information_corrected"].map((m) => [m, METRICS[m]]), () => redraw("path"));
  const model = choice("plane-model", MODELS.map((m) => [m, shortName(m)]), () => { reach(); redraw("path"); });
  const reach = () => { slider.max = String(ofModel(model()).length - 1); slider.value = slider.max; };
  reach();
  const column = (key, i) => Object.fromEntries(["v", "s", "e", "se"].map((name) => [name, layoutOf(i).rows.map((r) => at(key, i, r)[name])]));
  figure("path", "", () => {
    const chosen = ofModel(model());
    const now = Math.min(Number(slider.value), chosen.length - 1);
    const [input, output] = [`${metric()}|input_${order()}`, `${metric()}|output_${order()}`];
    const every = chosen.flatMap(([, i]) => [...column(input, i).v, ...column(output, i).v]).filter((v) => v !== null);
    const trail = { x: [], y: [], mode: "lines", line: { color: faint("#7F7F7F", SAMPLING), width: 1 }, hoverinfo: "skip" };
    const step = Math.max(1, Math.ceil(now / 24)); // two dozen earlier paths show the way; hundreds hide it
    for (let n = 0; n < now; n += step) {
      trail.x.push(...column(input, chosen[n][1]).v, null);
      trail.y.push(...column(output, chosen[n][1]).v, null);
    }
    const [c, i] = chosen[now];
    document.getElementById("checkpoint-name").textContent = c.step === null || c.step === undefined ? c.checkpoint : `step ${stepName(c)}`;
    return planeLayout([trail, ...planePath(layoutOf(i).rows.map((r) => DATA.rows[r]), layoutOf(i).layers, column(input, i), column(output, i), "", "#7F7F7F")], Math.max(...every, 1e-6) * 1.04);
  }, 520);
  slider.addEventListener("input", () => redraw("path"));
  const play = document.getElementById("play");
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (slider.value === slider.max) slider.value = "0";
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (slider.value === slider.max) { stop(); return; }
      slider.value = String(Number(slider.value) + 1);
      redraw("path");
    }, 180);
  });
}

function layerCell(checkpoint, row) {
  const { rows, layers, depth } = layoutOf(checkpoint);
  const index = layers[rows.indexOf(row)];
  return row === null ? { value: null, text: "–" }
    : { value: index / Math.max(1, depth), text: DATA.rows[row], small: `of ${depth - 1}` };
}

function checkpointTable() {
  const layer = choice("table-layer", DATA.labels.map((label, n) => [String(n), label]), () => fill());
  document.getElementById("table-layer").value = String(DATA.labels.length - 1);
  const present = Object.entries(METRICS).filter(([m]) => DATA.label_sets.some((s) => `${m}|${s}` in DATA.series));
  const metric = choice("table-metric", present.length ? present : [["", "none"]], () => fill());
  const fill = () => {
    const columns = tableColumns(DATA.label_sets, metric(), DATA.series);
    const rows = CHECKPOINTS.map((c, i) => [
      { value: c.checkpoint, text: c.checkpoint },
      { value: c.step, text: c.step === null || c.step === undefined ? "–" : c.step.toLocaleString("en") },
      ...(DATA.by_depth ? [layerCell(i, beside(i, Number(layer())))] : []),
      ...columns.map(([, key]) => { const { v, s, e, se } = at(key, i, beside(i, Number(layer()))); return valueCell(v, s, 1, e, se); }),
    ]);
    fillTable(document.getElementById("checkpoint-table"), ["checkpoint", "step", ...(DATA.by_depth ? ["layer"] : []), ...columns.map(([heading]) => heading)], rows);
  };
  return fill;
}

function buildSweep() {
  mapFigure();
  stepsFigure();
  pathFigure();
  return [...pointFigures(), checkpointTable()];
}
