"use strict";
// Models and checkpoints as points: the information plane, bars of the distance to its bound, a table.
const PLANES = DATA.planes;
/** Shapes of points on a figure, in a key, and as the pattern of bars: with the colours, they tell groups apart. */
const SHAPES = [
  { symbol: "circle", path: "M5,0A5,5 0 1,1 -5,0A5,5 0 1,1 5,0Z", pattern: "" },
  { symbol: "square", path: "M-4.5,-4.5h9v9h-9Z", pattern: "/" },
  { symbol: "diamond", path: "M0,-6L6,0L0,6L-6,0Z", pattern: "." },
  { symbol: "triangle-up", path: "M0,-5.5L5.5,4.5H-5.5Z", pattern: "x" },
];
const OTHERS = "#7F7F7F"; // grey is of no group
const GROUP_COLOURS = COLOURS.filter((colour) => colour !== OTHERS);
/** Diameters of points, of the fewest parameters and the most; those of checkpoints hide each other less. */
const DIAMETERS = [6, 20];
const PATH_DIAMETERS = [6, 11];
/** Most bars with a name, pixels of each, most labels of points, and the letters that a label shows. */
const MOST_BARS = 60;
const BAR = 17;
const MOST_LABELS = 150;
const LABEL_LETTERS = 28;
const LABEL_FONT = 11;
/** Pixels from a point to its label: beside it, or joined to it by a thin line. Ways there, the nearest first. */
const AWAY = [3, 14, 26];
/** Margins of a plane, in shares of its axes; and its least width, in shares of what it has to show. */
const MARGIN = 0.08;
const LEAST_WIDTH = 0.2;
const WAYS = [[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, 1], [1, -1], [-1, -1]];

/** A number of parameters in three digits. */
function amount(n) {
  const [unit, suffix] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([least]) => n >= least) || [1, ""];
  return `${Number((n / unit).toPrecision(3))}${suffix}`;
}

/** What points can be coloured by, as [id, name]. */
function colourings() {
  const differ = (key) => new Set(PLANES.points.map((p) => p[key])).size > 1;
  return [
    ...Object.keys(PLANES.groups).map((name) => [`group:${name}`, name]),
    ...(PLANES.paths.length ? [["step", "training step"]] : []),
    ["family", "family"],
    ...(PLANES.paths.length && differ("series") ? [["series", "model"]] : []),
  ];
}

/** Groups of points by what they are coloured by: the most frequent first; `of` gives that of each point. */
function groupsOf(by) {
  const column = by.startsWith("group:") ? PLANES.groups[by.slice(6)] : PLANES.points.map((p) => p[by]);
  const names = column.map((name) => name || "unknown");
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) || 0) + 1);
  const frequent = [...counts].sort((a, b) => b[1] - a[1]);
  const known = frequent.slice(0, GROUP_COLOURS.length * SHAPES.length).map(([name, n], i) => ({
    name: `${name} (${n})`, key: name, colour: GROUP_COLOURS[i % GROUP_COLOURS.length], shape: SHAPES[Math.floor(i / GROUP_COLOURS.length)],
  }));
  const rest = frequent.slice(known.length);
  const others = { name: `${rest.length} others (${rest.reduce((sum, [, n]) => sum + n, 0)})`, colour: OTHERS, shape: SHAPES[0] };
  const byKey = new Map(known.map((group) => [group.key, group]));
  return { groups: [...known, ...(rest.length ? [others] : [])], of: names.map((name) => byKey.get(name) || others) };
}

/** How points look, coloured by steps or by groups. */
function looksOf(by) {
  if (by !== "step") {
    const { groups, of } = groupsOf(by);
    return { groups, hidden: (i) => of[i].hidden, colours: () => of.map((group) => ink(group.colour)), shapes: of.map((group) => group.shape) };
  }
  const steps = PLANES.points.map((p) => p.step);
  const known = steps.filter(isKnown);
  const { x } = logSteps(known, 1000);
  const placeOf = new Map(known.map((step, i) => [step, x[i]]));
  const [first, last] = [Math.min(...x), Math.max(...x)];
  return {
    groups: [], range: [Math.min(...known), Math.max(...known)], hidden: () => false, shapes: steps.map(() => SHAPES[0]),
    colours: () => steps.map((step) => (isKnown(step) ? between((placeOf.get(step) - first) / (last - first || 1)) : ink(OTHERS))),
  };
}

/** The colour at a share of the scale of points, mixed of its neighbours there. */
function between(share) {
  const place = share * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const parts = [low, low + 1].map((n) => [1, 3, 5].map((i) => parseInt(ink(VIRIDIS[n]).slice(i, i + 2), 16)));
  return `#${parts[0].map((part, i) => Math.round(part + (place - low) * (parts[1][i] - part)).toString(16).padStart(2, "0")).join("")}`;
}

/** A name of at most so many letters; what is left out is in its middle, since names often differ at their ends. */
const narrowed = (name, most) => (name.length > most ? `${name.slice(0, Math.floor(most / 3))}…${name.slice(Math.floor(most / 3) + 1 - most)}` : name);

/** Fewest and most parameters, where they differ. */
function parameterRange() {
  const known = PLANES.points.map((p) => p.parameters).filter(Boolean);
  const range = [Math.min(...known), Math.max(...known)];
  return known.length && range[0] < range[1] ? range : null;
}

/** The diameter of a point: its area is by the logarithm of its parameters; those not known are the smallest. */
function diameter(parameters) {
  const [least, most] = PLANES.paths.length ? PATH_DIAMETERS : DIAMETERS;
  const range = parameterRange();
  if (!range) return PLANES.paths.length ? 8 : 11;
  const share = parameters ? Math.log(parameters / range[0]) / Math.log(range[1] / range[0]) : 0;
  return Math.sqrt(least ** 2 + share * (most ** 2 - least ** 2));
}

/** The keys of colours, which hide and show groups, and of sizes. */
function pointKeys(looks, onToggle) {
  const place = document.getElementById("points-keys");
  place.replaceChildren();
  const key = (tag, attributes, colour, path, scale, name) => {
    const [drawing, draw] = drawingOf({ colour });
    drawing.setAttribute("height", "22");
    drawing.setAttribute("width", "22");
    draw("path", { d: path, transform: `translate(11 11) scale(${scale})` });
    const made = element(tag, { class: "key point", ...attributes }, drawing, name);
    place.append(made);
    return made;
  };
  for (const group of looks.groups.length > 1 ? looks.groups : []) {
    const made = key("button", { type: "button", "aria-pressed": "true" }, group.colour, group.shape.path, 1, group.name);
    made.addEventListener("click", () => {
      group.hidden = !group.hidden;
      made.setAttribute("aria-pressed", String(!group.hidden));
      onToggle();
    });
  }
  if (looks.range) place.append(element("span", { class: "ramp" }, `step ${grouped(looks.range[0])}`, element("i"), `${grouped(looks.range[1])} (log scale)`));
  const range = parameterRange();
  if (!range) return;
  for (const n of [range[0], Math.sqrt(range[0] * range[1]), range[1]])
    key("span", {}, OTHERS, SHAPES[0].path, diameter(n) / 10, `${amount(n)} parameters`);
  if (PLANES.points.some((p) => !p.parameters)) place.append(element("span", { class: "key" }, "(not known: smallest)"));
}

/** Limits of both axes: around the points and their bars, and so far up or down that a part of the bound is in sight. */
function planeLimits(points) {
  const [[left, right], [low, high]] = ["x", "y"].map((axis) => {
    const bars = points.map((p) => (BANDS.s && p[axis].s[0]) || 0);
    return [Math.min(...points.map((p, n) => p[axis].v[0] - bars[n])), Math.max(...points.map((p, n) => p[axis].v[0] + bars[n]))];
  });
  const wide = LEAST_WIDTH * (Math.max(high, right) - Math.min(low, left)) || 1e-3; // beside the way to the bound
  const more = Math.max(0, wide - (right - left)) / 2;
  const [from, to] = [left - more, right + more];
  const inSight = 0.2 * (to - from);
  const padded = (a, b) => [a - MARGIN * Math.max(b - a, wide), b + MARGIN * Math.max(b - a, wide)];
  return [padded(from, to), padded(Math.min(low, to - inSight), Math.max(high, from + inSight))];
}

/** The names that points have: lone ones their own; of one training run the first and last, of several the last that of the run. */
function pointNames() {
  const names = PLANES.points.map((p) => p.name);
  for (const path of PLANES.paths) {
    const [first, last] = [path.points[0], path.points[path.points.length - 1]];
    for (const i of path.points) if (PLANES.paths.length > 1 || (i !== first && i !== last)) names[i] = "";
    if (PLANES.paths.length > 1) names[last] = path.name;
  }
  return names;
}

/**
 * Labels that touch neither each other nor a point, crowded points last, as annotations of plotly. `dots` are points
 * {x, y, radius, name} in pixels from the lower left corner of axes of width × height.
 */
function pointLabels(dots, width, height) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${LABEL_FONT}px ${getComputedStyle(document.body).fontFamily}`;
  const taken = dots.map(({ x, y, radius: r }) => [x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r]);
  const free = (box) => box[0] >= 0 && box[1] >= 0 && box[2] <= width && box[3] <= height
    && !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
  const apart = dots.map((dot) => Math.min(...dots.map((other) => (other === dot ? Infinity : Math.hypot(dot.x - other.x, dot.y - other.y)))));
  const order = dots.map((_, i) => i).filter((i) => dots[i].name).sort((a, b) => apart[b] - apart[a]);
  const found = [];
  for (const i of order.slice(0, MOST_LABELS)) {
    const { x, y, radius, name } = dots[i];
    const shownName = narrowed(name, LABEL_LETTERS);
    const half = [pen.measureText(shownName).width / 2 + 3, LABEL_FONT / 2 + 3];
    const places = AWAY.flatMap((away) => WAYS.map(([dx, dy]) => {
      const out = (radius + away) * (dx && dy ? 0.9 : 1);
      return { dx: dx * (out + half[0]), dy: dy * (out + half[1]), far: away > AWAY[0] };
    }));
    const chosen = places.find(({ dx, dy }) => free([x + dx - half[0], y + dy - half[1], x + dx + half[0], y + dy + half[1]]));
    if (!chosen) continue;
    taken.push([x + chosen.dx - half[0], y + chosen.dy - half[1], x + chosen.dx + half[0], y + chosen.dy + half[1]]);
    const label = { dot: i, text: text(shownName), font: { size: LABEL_FONT }, xanchor: "center", yanchor: "middle" };
    found.push(chosen.far
      ? { ...label, showarrow: true, arrowhead: 0, arrowwidth: 0.6, arrowcolor: faint(OTHERS, ["b0", "b0"]), ax: chosen.dx, ay: -chosen.dy }
      : { ...label, showarrow: false, xshift: chosen.dx, yshift: chosen.dy });
  }
  return { labels: found, left: order.length - found.length };
}

/** Points that have a place in the plane of an order: their places and spreads in the chosen unit. */
function placed(order, metric) {
  const [input, output] = ["input", "output"].map((way) => PLANES.series[`${metric}|${way}_${order}`]);
  if (!input || !output) return [];
  return PLANES.points.map((point, i) => {
    const factor = scaleOf(metric, point.log_m);
    const of = (series) => Object.fromEntries(["v", "s", "se"].map((name) => [name, [series[name] && isKnown(series[name][i]) ? series[name][i] * factor : null]]));
    return { i, point, x: of(input), y: of(output) };
  }).filter(({ x, y }) => isKnown(x.v[0]) && isKnown(y.v[0]));
}

/** What hover shows of a point. */
function pointText({ i, point, x, y }) {
  const facts = [point.family, point.parameters && `${amount(point.parameters)} parameters`, ...Object.values(PLANES.groups).map((column) => column[i])];
  const run = [point.model, point.revision && `revision ${point.revision}`, isKnown(point.step) && `step ${grouped(point.step)}`];
  const line = (parts) => { const known = parts.filter(Boolean).map((part) => text(part)); return known.length ? `<br>${known.join(" · ")}` : ""; };
  return `<b>${text(point.name)}</b>${line(run)}${line(facts)}<br>input: ${spreadOf(x, 0)}<br>output: ${spreadOf(y, 0)} ${unitName()}`
    + `<br>distance to the bound: ${shown(x.v[0] - y.v[0])}; optimality ${shown(x.v[0] ? y.v[0] / x.v[0] : null)}`;
}

function pointPlane(shownPoints, looks, room) {
  const margin = { l: 64, r: 22, t: TOOLBAR, b: 50 };
  const [width, height] = [room, POINTS_HEIGHT - margin.t - margin.b];
  const points = shownPoints();
  const [x, y] = ["x", "y"].map((axis) => points.map((p) => p[axis].v[0]));
  const [xRange, yRange] = points.length ? planeLimits(points) : [[0, 1], [0, 1]];
  const pixels = (value, [from, to], length) => ((value - from) / (to - from)) * length;
  const sizes = points.map(({ point }) => diameter(point.parameters));
  const names = pointNames();
  const dots = points.map(({ i }, n) => ({ x: pixels(x[n], xRange, width), y: pixels(y[n], yRange, height), radius: sizes[n] / 2 + 1, name: names[i] }));
  const { labels, left } = pointLabels(dots, width, height);
  document.getElementById("points-note").textContent = left ? `${left} of ${dots.filter((dot) => dot.name).length} names have no room; hover shows them.` : "";
  const placeOf = new Map(points.map(({ i }, n) => [i, n]));
  const paths = PLANES.paths.map((path) => path.points.map((i) => placeOf.get(i)).filter(isKnown)).map((path) => (
    { x: path.map((n) => x[n]), y: path.map((n) => y[n]), mode: "lines", line: { color: ink(OTHERS), width: 1 }, hoverinfo: "skip" }));
  const bars = (axis) => ({
    type: "data", array: points.map((p) => p[axis].s[0] || 0), visible: BANDS.s && points.some((p) => isKnown(p[axis].s[0])),
    color: faint(OTHERS, ["80", "80"]), thickness: 0.8, width: 0,
  });
  const colours = looks.colours();
  const marks = {
    x, y, mode: "markers", error_x: bars("x"), error_y: bars("y"), text: points.map(pointText), hovertemplate: "%{text}<extra></extra>",
    marker: {
      size: sizes, color: points.map(({ i }) => colours[i]), symbol: points.map(({ i }) => looks.shapes[i].symbol), opacity: 1,
      line: { color: onDark() ? "#14171b" : "#ffffff", width: PLANES.paths.length ? 0.5 : 1 },
    },
  };
  const ends = [Math.min(xRange[0], yRange[0]), Math.max(xRange[1], yRange[1])];
  return {
    traces: [...paths, marks],
    layout: {
      margin,
      shapes: [{ type: "line", x0: ends[0], y0: ends[0], x1: ends[1], y1: ends[1], line: { color: OTHERS, dash: "dot", width: 1 }, layer: "below" }],
      annotations: labels.map(({ dot, ...label }) => ({ ...label, x: x[dot], y: y[dot] })),
      xaxis: { range: xRange, automargin: false, nticks: room < 500 ? 4 : 8, title: { text: `I(input; Z) (${unitName()})`, standoff: 8 } },
      yaxis: { range: yRange, automargin: false, title: { text: `I(output; Z) (${unitName()})`, standoff: 8 } },
    },
  };
}

function distanceBars(shownPoints, looks, room, upright) {
  const points = shownPoints().map((p) => ({ ...p, distance: p.x.v[0] - p.y.v[0] })).sort((a, b) => a.distance - b.distance);
  const [places, lengths] = [points.map((_, n) => n), points.map((p) => p.distance)];
  const colours = looks.colours();
  const [colour, shape] = [points.map(({ i }) => colours[i]), points.map(({ i }) => looks.shapes[i].pattern)];
  const pattern = { shape, fillmode: "replace", bgcolor: colour, fgcolor: onDark() ? "#14171b" : "#ffffff", size: 6, solidity: 0.2 };
  const bars = {
    type: "bar", text: points.map(pointText), textposition: "none", hovertemplate: "%{text}<extra></extra>",
    marker: { color: colour, line: { width: 0 }, ...(shape.some(Boolean) && { pattern }) },
  };
  const what = { title: { text: `${room < 500 ? "input − output" : "I(input; Z) − I(output; Z)"} (${unitName()})`, standoff: 8 }, rangemode: "tozero" };
  if (upright) {
    return { traces: [{ ...bars, x: places, y: lengths }], layout: { bargap: 0, xaxis: { title: { text: "rank", standoff: 8 }, showgrid: false, nticks: room < 500 ? 4 : 8 }, yaxis: what } };
  }
  const names = points.map(({ point }) => text(narrowed(point.name, room < 500 ? 16 : LABEL_LETTERS)));
  return {
    traces: [{ ...bars, x: lengths, y: places, orientation: "h" }],
    layout: { bargap: 0.25, xaxis: { ...what, nticks: room < 500 ? 4 : 8 }, yaxis: { tickvals: places, ticktext: names, range: [points.length - 0.4, -0.6], showgrid: false } },
  };
}

const POINTS_HEIGHT = 560;

/** The figures of points; returns what fills their table, where the page has one. */
function pointFigures() {
  if (!PLANES) return [];
  if (PLANES.orders.length) pointPlanes();
  return document.getElementById("points-table") ? [pointTable()] : [];
}

function pointPlanes() {
  let looks = null;
  const order = choice("points-order", PLANES.orders.map((o) => [o, o]), () => redraw("points", "distances"));
  const metric = choice("points-metric", ["mutual_information", "mutual_information_corrected"].filter((m) => PLANES.orders.some((o) => `${m}|input_${o}` in PLANES.series)).map((m) => [m, METRICS[m]]), () => redraw("points", "distances"));
  const look = () => {
    looks = looksOf(by());
    pointKeys(looks, () => redraw("points", "distances"));
  };
  const by = choice("points-colour", colourings(), () => { look(); redraw("points", "distances"); });
  look();
  const shownPoints = () => placed(order(), metric()).filter(({ i }) => !looks.hidden(i));
  const n = PLANES.points.length;
  figure("points", "", (room) => pointPlane(shownPoints, looks, room), POINTS_HEIGHT);
  figure("distances", "Distance to the bound", (room) => distanceBars(shownPoints, looks, room, n > MOST_BARS), n > MOST_BARS ? 340 : 90 + BAR * n, "0 is the bound, where all that is held of the past serves the future");
}

function pointTable() {
  const present = Object.entries(METRICS).filter(([m]) => PLANES.label_sets.some((s) => `${m}|${s}` in PLANES.series));
  const metric = choice("points-table-metric", present.length ? present : [["", "none"]], () => fill());
  const groups = Object.entries(PLANES.groups);
  const withSteps = PLANES.points.some((p) => isKnown(p.step));
  const fill = () => {
    const columns = tableColumns(PLANES.label_sets, metric(), PLANES.series);
    const words = (value) => ({ value: value || null, text: value || "–", kind: "name" });
    const rows = PLANES.points.map((point, i) => [
      { value: point.name, text: point.name },
      words(point.family),
      ...groups.map(([, column]) => words(column[i])),
      { value: point.parameters, text: point.parameters ? amount(point.parameters) : "–" },
      ...(withSteps ? [{ value: point.step, text: isKnown(point.step) ? grouped(point.step) : "–" }] : []),
      ...columns.map(([, key]) => {
        const { v, s, se } = PLANES.series[key];
        return valueCell(v[i], s && s[i], scaleOf(key.split("|")[0], point.log_m), null, se && se[i]);
      }),
    ]);
    const headings = ["model", "family", ...groups.map(([name]) => name), "parameters", ...(withSteps ? ["step"] : []), ...columns.map(([heading]) => heading)];
    fillTable(document.getElementById("points-table"), headings, rows);
  };
  return fill;
}
