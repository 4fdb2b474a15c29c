"use strict";
// What all figures share: the data, units, text that is shown as text, panels and keys.
const DATA = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["solid", "dash", "dot", "dashdot"];
const RATIOS = new Set(["coverage", "regularity", "optimality", "optimality_corrected", "information_share", "information_share_corrected", "residual", "residual_corrected", "anisotropy"]);
const METRICS = {
  mutual_information: "raw information",
  mutual_information_corrected: "corrected information",
  mutual_information_null: "information by chance",
  mutual_information_null_sd: "information by chance, sd over relabelings",
  mutual_information_max: "ceiling, if every label were unique",
  conditional_entropy: "conditional entropy",
  regularity: "regularity",
  coverage: "coverage",
  information_share: "share of the ceiling that the order adds",
  information_share_corrected: "share of the ceiling that the order adds, corrected",
};
const ORDERS = ["unigram", "bigram", "trigram", "quadgram"];
let unit = "efficiency";

const unitName = () => DATA.units.find((u) => u.id === unit).name;
const scaleOf = (metric, logM) =>
  RATIOS.has(metric) || unit === "efficiency" ? 1 : unit === "nats" ? logM : logM / Math.LN2;
const unitOf = (metric) => (RATIOS.has(metric) ? "ratio" : unitName());
const scaled = (values, factor) => values.map((v) => (v === null || v === undefined ? null : v * factor));
const plain = (name) => name.replace(/^column:/, "").replaceAll("_", " ");

/** Text for plotly, which takes tags, entities, $TeX$ and %{templates} for markup: shown as it is written, on one line. */
function text(value, longest = 60) {
  const line = String(value).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ");
  const cut = line.length > longest ? line.slice(0, longest - 1) + "…" : line;
  return cut.replace(/[&<>"$%]/g, (character) => `&#${character.charCodeAt(0)};`);
}

const shown = (value, digits = 4) => (value === null || value === undefined ? "–" : value.toFixed(digits));
/** A p-value, with two digits that count. */
const shownP = (p) => (p === null || p === undefined ? "–" : String(Number(p.toPrecision(2))));
const isKnown = (value) => value !== null && value !== undefined;
/** A value, its sd over anchor sets, and its standard errors by the sampling of labels and over documents, where there are such. */
const withSpread = (value, sd, error, se) => shown(value) + (isKnown(sd) ? ` ± ${sd.toFixed(4)}` : "")
  + (error ? ` (sampling ± ${error.toFixed(4)})` : "") + (isKnown(se) ? ` (documents: se ${se.toFixed(4)})` : "");
/** The same of the i-th value of a series {v, s, e, se}. */
const spreadOf = (of, i) => withSpread(of.v[i], of.s && of.s[i], of.e && of.e[i], of.se && of.se[i]);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// --- figures ---------------------------------------------------------------------------------------------

const figures = []; // {node, draw}: what is drawn anew when the unit or a choice changes
const place = (name) => document.querySelector(`[data-chart="${name}"]`);

/** How many panels stand side by side on a wide screen. */
const columns = (name, n) => place(name).classList.add(`c${Math.min(4, Math.max(1, n))}`);

/** A figure in the panel `name`; draw(room) returns {traces, layout} for the pixels between its margins. */
function figure(name, title, draw, height = 310, note = "") {
  const plot = element("div", { class: "plot" });
  plot.style.height = `${height}px`;
  const caption = title ? [element("figcaption", {}, title, ...(note ? [" ", element("small", {}, note)] : []))] : [];
  place(name).append(element("figure", {}, ...caption, plot));
  const entry = { node: plot, chart: name, draw, height };
  figures.push(entry);
  return entry;
}

/** Pixels above a figure that its toolbar stands in, so that it covers nothing. */
const TOOLBAR = 32;
/** Pixels of a figure that its margins take from its width. */
const MARGINS = 86;

function render(entry) {
  if (!window.Plotly) return undefined; // it is about to run, see start.js
  const width = entry.node.clientWidth;
  const { traces, layout } = entry.draw(Math.max(80, width - MARGINS));
  const axis = { automargin: true, zeroline: false, showline: false, title: { standoff: 8 } };
  const { xaxis = {}, yaxis = {}, margin = {}, ...others } = layout;
  const printing = document.body.classList.contains("printing");
  const whole = {
    height: entry.height,
    ...(printing ? { width, autosize: false } : { autosize: true }), // a sheet's width is not the window's
    margin: { l: 56, r: 20, t: printing ? 10 : TOOLBAR, b: 44, ...margin },
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, DejaVu Sans, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    modebar: { bgcolor: "rgba(0,0,0,0)" },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { align: "left", namelength: 0 },
    dragmode: false,
    ...others,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
  };
  const buttons = ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"];
  return Plotly.react(entry.node, traces, whole, {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // what was measured stays here
    displayModeBar: "hover",
    modeBarButtonsToRemove: buttons,
    toImageButtonOptions: { format: "svg", filename: entry.chart },
  });
}

/** The colour bar of a heat map lies above it, lower than the toolbar, so that cells have the whole width. */
const COLOUR_BAR = { orientation: "h", x: 0, xanchor: "left", xpad: 0, y: 1, yanchor: "bottom", ypad: 4, len: 0.6, thickness: 9, outlinewidth: 0, nticks: 4 };

/** The layout of a heat map; `unit` heads its colour bar. Beside a level colour bar, plotly misplaces titles: these are notes. */
function heatLayout(unit, { title, ...xaxis }, yaxis) {
  const note = { showarrow: false, xref: "paper", yref: "paper" };
  return {
    xaxis: { ...xaxis, tickangle: 0, ticks: "", showgrid: false }, yaxis: { ...yaxis, ticks: "", showgrid: false },
    annotations: [
      { ...note, text: unit, x: 0, xanchor: "left", xshift: -3, y: 1, yanchor: "bottom", yshift: 30 },
      { ...note, text: title.text, font: { size: 14 }, x: 0.5, xanchor: "center", y: 0, yanchor: "top", yshift: -20 },
    ],
    margin: { l: 60, r: 26, t: TOOLBAR + 48, b: 50 },
  };
}

const redraw = (...charts) => figures.filter((f) => charts.length === 0 || charts.includes(f.chart)).forEach(render);

/** Half of the 95% interval over documents, in standard errors. Its band has dotted edges and no fill. */
const Z95 = 1.96;
/** Which bands are drawn: of the sd over anchor sets, of the sampling of labels, of the interval over documents, of chance. */
const BANDS = { s: true, e: true, se: true, chance: true };

/** A line, and the bands of its spread, of its error by the sampling of labels and of its interval over documents, where there are such. `texts` are what hover shows. */
function lineWithBand(x, y, sd, { colour, dash = "solid", width = 2, texts, markers = true, visible = true, error = null, se = null, spread = "s" }) {
  const traces = [];
  for (const [half, opacity, kind] of [[sd, SPREAD, spread], [error, SAMPLING, "e"]]) {
    if (!BANDS[kind] || !half || half.every((s) => s === null)) continue;
    const known = x.map((_, i) => i).filter((i) => y[i] !== null && half[i] !== null);
    traces.push({
      x: [...known.map((i) => x[i]), ...known.toReversed().map((i) => x[i])],
      y: [...known.map((i) => y[i] + half[i]), ...known.toReversed().map((i) => y[i] - half[i])],
      fill: "toself", fillcolor: faint(colour, opacity), line: { width: 0 }, mode: "lines", hoverinfo: "skip", visible,
    });
  }
  if (BANDS.se && se && se.some(isKnown)) {
    const edge = (sign) => y.map((v, i) => (isKnown(v) && isKnown(se[i]) ? v + sign * Z95 * se[i] : null));
    traces.push({ x: [...x, null, ...x], y: [...edge(1), null, ...edge(-1)], mode: "lines", line: { color: ink(colour), width: 1.2, dash: "dot" }, hoverinfo: "skip", visible });
  }
  traces.push({
    x, y, mode: markers ? "lines+markers" : "lines", line: { color: ink(colour), dash, width }, marker: { size: 5, color: ink(colour) },
    text: texts, hovertemplate: "%{text}<extra></extra>", visible,
  });
  return traces;
}

const DEPTH_AXIS = "relative depth (layer / (L + 1); 0: embeddings, 1: final norm)";

/** Names of rows of blocks: of the block itself, or of a site in it. */
const HEAD_ROW = /^layer\.(\d+)\.head\.(\d+)$/;
const SITE_ROW = /^layer\.(\d+)(\.(attention|router|mlp|head\.(\d+|mean)))?$/;

/** Ticks of an axis on which each layer stands at its index in the model: as many as fit, by their short names. */
function layerTicks(rows, layers, room, upwards = false) {
  const names = rows.map((row) => (row === "embeddings" ? "emb" : row === "final_norm" ? "norm" : row.replace(HEAD_ROW, "$1.h$2").replace(SITE_ROW, "$1")));
  const areHeads = rows.every((row) => HEAD_ROW.test(row));
  const numbered = rows.every((row) => /^(embeddings|final_norm)$/.test(row) || SITE_ROW.test(row));
  const [first, last] = [layers[0], layers[layers.length - 1]];
  const most = upwards ? Math.max(2, Math.min(MOST_TICKS, Math.floor(room / LINE))) : ticksIn(room, names.map((name) => name.slice(0, 12)));
  const step = [1, 2, 5, 10, 20, 50, 100].find((s) => (last - first) / s <= most - 1) || Math.ceil((last - first) / most);
  const chosen = [0];
  for (let i = 1; i < rows.length - 1; i += 1) {
    const fits = layers[i] - layers[chosen[chosen.length - 1]] > 0.6 * step && last - layers[i] > 0.6 * step;
    if (fits && (rows.length <= most || layers[i] % step === 0)) chosen.push(i);
  }
  if (rows.length > 1) chosen.push(rows.length - 1);
  return {
    tickvals: chosen.map((i) => layers[i]), ticktext: chosen.map((i) => text(names[i], 12)), range: [first - 0.4, last + 0.4],
    title: { text: areHeads ? "layer and head" : numbered ? "layer" : "module", standoff: 8 },
  };
}

/** A small drawing of a key, and what adds a shape to it. Style sheets choose between its colours on light and on dark paper. */
function drawingOf(entry) {
  const ns = "http://www.w3.org/2000/svg";
  const made = (tag, attributes) => {
    const shape = document.createElementNS(ns, tag);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    return shape;
  };
  const opacities = (entry.band || CHANCE).map((opacity) => (parseInt(opacity, 16) / 255).toFixed(3));
  const colours = `--light: ${entry.colour}; --dark: ${BRIGHT[entry.colour] || entry.colour}; --faint: ${opacities[0]}; --strong: ${opacities[1]}`;
  const svg = made("svg", { width: 28, height: 10, "aria-hidden": "true", style: colours });
  return [svg, (tag, attributes) => svg.append(made(tag, attributes))];
}

/** Keys of lines, beside no data; with `toggles`, each hides and shows what it stands for. */
function keys(id, entries, onToggle) {
  const place = document.getElementById(id);
  for (const entry of entries) {
    const [drawing, draw] = drawingOf(entry);
    if (entry.area || entry.band) draw("rect", { width: 28, height: 10 });
    const dashes = { solid: "", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3" }[entry.dash || "solid"];
    for (const y of entry.edges ? [1.5, 8.5] : entry.band ? [] : [entry.area ? 1 : 5])
      draw("line", { x1: 0, x2: 28, y1: y, y2: y, "stroke-width": entry.edges ? 1.5 : 2.5, "stroke-dasharray": dashes });
    const key = element(onToggle ? "button" : "span", { class: "key", ...(onToggle && { type: "button", "aria-pressed": "true" }) }, drawing, entry.name);
    if (onToggle) {
      key.addEventListener("click", () => {
        entry.hidden = !entry.hidden;
        key.setAttribute("aria-pressed", String(!entry.hidden));
        onToggle();
      });
    }
    place.append(key);
  }
  return entries;
}

/** Keys of the bands of some series, where there are others than that of the sd over anchor sets. */
function bandKeys(id, series) {
  const has = (name) => series.some((of) => of && of[name]);
  if (!document.getElementById(id) || !(has("e") || has("se"))) return;
  keys(id, [
    ...(has("s") ? [{ name: "± sd over anchor sets", colour: "#7F7F7F", band: SPREAD }] : []),
    ...(has("e") ? [{ name: "± sampling of labels", colour: "#7F7F7F", band: SAMPLING }] : []),
    ...(has("se") ? [{ name: "95% interval over documents (± 1.96 standard errors)", colour: "#7F7F7F", edges: true, dash: "dot" }] : []),
  ]);
}

/** A switch of the kinds of bands, where intervals over documents were measured. */
function bandSwitch(series) {
  const place = document.getElementById("bands");
  const kinds = [["s", "anchors"], ["e", "sampling"], ["se", "documents"]].filter(([kind]) => series.some((of) => of[kind]));
  if (kinds.length < 2 || !kinds.some(([kind]) => kind === "se")) return;
  place.hidden = false;
  for (const [kind, name] of kinds) {
    const box = element("input", { type: "checkbox", value: kind, checked: "" });
    box.addEventListener("change", () => { BANDS[kind] = box.checked; redraw(); });
    place.append(element("label", {}, box, element("span", {}, name)));
  }
}

/** Fill a <select>; its label is hidden where there is nothing to choose. Returns a function that reads it. */
function choice(id, options, onChange) {
  const select = document.getElementById(id);
  if (!select) return () => options[0] && options[0][0];
  select.append(...options.map(([value, name]) => element("option", { value }, name)));
  if (options.length < 2) select.closest("label").hidden = true;
  select.addEventListener("change", onChange);
  return () => select.value;
}
