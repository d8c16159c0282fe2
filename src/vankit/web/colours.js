// Colours of classes, as vankit draws them, and of heat.

const PALETTE = [
  [230, 40, 50], [45, 110, 240], [255, 215, 0], [40, 170, 60], [255, 135, 20], [150, 60, 205], [0, 205, 225],
  [240, 60, 190], [165, 225, 40], [155, 90, 40], [0, 130, 140], [255, 150, 180], [65, 50, 150], [135, 135, 20],
  [110, 235, 175], [190, 155, 255], [145, 25, 65], [120, 180, 255], [20, 95, 45],
];
const STEP = 7; // to a class's second choice: the next one is likely to be there with it

const RAMP = [
  [45, 25, 85], [66, 95, 220], [40, 175, 228], [55, 220, 155], [165, 240, 70], [245, 205, 55], [242, 115, 35],
  [190, 30, 20],
];

/** A colour for each name that is there, by its place in the model's classes: in all pictures the same, if possible. */
export function classColours(classes, names) {
  const labels = [...new Set(names)].map((name) => [Math.max(classes.indexOf(name), 0), name]);
  const chosen = new Map();
  const taken = new Set();
  for (const [label, name] of labels.sort((a, b) => a[0] - b[0])) {
    const order = PALETTE.map((_, i) => (label + STEP * i) % PALETTE.length);
    const place = order.find((each) => !taken.has(each)) ?? order[0];
    taken.add(place);
    chosen.set(name, PALETTE[place]);
  }
  return chosen;
}

/** Black or white, whichever is easier to read on it. */
export function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
}

/** From 0, cold, to 1, hot. */
export function heatColour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((channel, i) => channel + (place - low) * (RAMP[low + 1][i] - channel));
}

export function css([red, green, blue], alpha = 1) {
  return `rgb(${red} ${green} ${blue} / ${alpha})`;
}
