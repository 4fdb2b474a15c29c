"use strict";
// Which ticks an axis has: no more than stand beside each other in its room.
/** Pixels of a letter of a tick, between two ticks, and of a line of text. */
const LETTER = 7;
const GAP = 12;
const LINE = 20;
/** Most ticks: more say no more. */
const MOST_TICKS = 14;

/** How many ticks of these names fit into some pixels. */
const ticksIn = (room, names) =>
  Math.max(2, Math.min(MOST_TICKS, Math.floor(room / (LETTER * Math.max(1, ...names.map((name) => String(name).length)) + GAP))));

/** Every how many-th of n things gets a tick, so that `most` do at most. */
const everyOf = (n, most) => Math.max(1, Math.ceil(n / most));

const grouped = (step) => Math.round(step).toLocaleString("en");

/** Powers of ten, and their multiples by `factors`, from the least step to the greatest; every `stride`-th power alone. */
function decades(least, greatest, factors, stride = 1) {
  const found = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.log10(greatest); power += 1)
    if (power % stride === 0) found.push(...factors.map((factor) => factor * 10 ** power).filter((step) => step >= least && step <= greatest));
  return found;
}

/**
 * Steps on a logarithmic axis: where they stand, and ticks that fit into `room` pixels. Step 0, which has no logarithm,
 * stands half a decade left of the first.
 */
function logSteps(steps, room) {
  const positive = steps.filter((step) => step > 0);
  const [least, greatest] = positive.length ? [Math.min(...positive), Math.max(...positive)] : [1, 1];
  const zero = Math.log10(least) - 0.5;
  const place = (step) => (step > 0 ? Math.log10(step) : zero);
  const x = steps.map(place);
  const [from, to] = [Math.min(...x), Math.max(...x)];
  const pixels = (step) => ((place(step) - from) / (to - from || 1)) * room;
  const apart = (step, next) => pixels(next) - pixels(step) >= (LETTER * (grouped(step).length + grouped(next).length)) / 2 + GAP;
  // A tick that would touch that of step 0 gives way to it.
  const withZero = (marks) => (steps.includes(0) ? [0, ...marks.filter((mark) => apart(0, mark))] : marks);
  const fits = (marks) => marks.length <= MOST_TICKS && marks.every((mark, i) => i === 0 || apart(marks[i - 1], mark));
  // The finest that fits: few decades have ticks between them, many are passed over.
  const ladder = [[1, 2, 5], [1]].map((factors) => decades(least, greatest, factors));
  ladder.push(...[2, 3, 4].map((stride) => decades(least, greatest, [1], stride)));
  const enough = ladder.map(withZero).find((marks) => marks.filter(Boolean).length >= 2 && fits(marks));
  const ends = positive.length ? [...new Set([least, greatest])] : [];
  const chosen = enough || withZero(fits(ends) ? ends : ends.slice(-1));
  return { x, axis: { tickvals: chosen.map(place), ticktext: chosen.map(grouped), tickangle: 0, title: { text: "training step (log scale)", standoff: 8 } } };
}
