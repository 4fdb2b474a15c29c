"use strict";
// Colours of figures on light and on dark paper. Sheets of paper are light, whatever the screen is.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#a5db36"];
/** What stands for a colour on dark paper, which would swallow the darker ones. */
const BRIGHT = {
  "#0072B2": "#3D9BE9", "#D55E00": "#FF7A33", "#009E73": "#1FC79A", "#CC79A7": "#E59BC5", "#E69F00": "#F5B83D", "#56B4E9": "#A6DCFF", "#7F7F7F": "#A3ADB8",
  "#440154": "#7F6BD6", "#482878": "#6A83DC", "#3e4989": "#4C9CD9", "#31688e": "#38B2C8", "#26828e": "#2CC4AC", "#1f9e89": "#3ED08C", "#35b779": "#78DB64", "#6ece58": "#B2E43C", "#a5db36": "#FDE725",
};
const DARK = matchMedia("(prefers-color-scheme: dark)");
const onDark = () => DARK.matches && !document.body.classList.contains("printing");
/** A colour as it is drawn now. */
const ink = (colour) => (onDark() ? BRIGHT[colour] || colour : colour);

/** The colour of a line, from the first (0) to the last (1); the end of the scale that light paper would swallow is left out. */
const colourAlong = (share) => VIRIDIS[Math.round(share * (VIRIDIS.length - 2))];
/** The scale of points in their order; heat maps keep viridis, since their cells touch each other and not the paper. */
const pointScale = () => VIRIDIS.map((colour, i) => [i / (VIRIDIS.length - 1), ink(colour)]);

/** Opacities of bands on light and on dark paper, in hexadecimal: of the sd over anchor sets, and of the error by the sampling of labels within it. */
const SPREAD = ["2b", "40"];
const SAMPLING = ["66", "8c"];
const CHANCE = ["40", "4d"];
/** A colour of that opacity. */
const faint = (colour, opacity) => ink(colour) + opacity[onDark() ? 1 : 0];
