// What lies over a picture, as small canvases that are made once and drawn often.

import { heatColour } from "./colours.js";
import { decodeMask } from "./rle.js";

const LONGEST = 1024; // of a mask's sides: finer ones would not be seen, and fill the memory
const CELL = 32; // drawn pixels per value of a heat map
const FILL = 100; // opacity of a mask, of 255
const EDGE = 235;
const COLD = 130; // opacity of the least heat, through which the picture is seen

/** A mask in its colour, with its outline: {canvas, left, top, width, height} in the picture's pixels, and `middle`. */
export function maskLayer(segmentation, colour) {
  const step = Math.ceil(Math.max(...segmentation.size) / LONGEST);
  const mask = decodeMask(segmentation, step);
  const { left, top, width, height, middle } = mask;
  if (!width) return null;
  const canvas = drawn(width, height, (pixels) => paintMask(pixels, mask, segmentation.size, step, colour));
  return { canvas, left: left * step, top: top * step, width: width * step, height: height * step, middle };
}

/** Filled, with an outline; but none along the picture's own edge. */
function paintMask(pixels, { left, top, width, height, bits }, size, step, colour) {
  const [down, across] = size.map((side) => Math.ceil(side / step));
  const [fill, edge] = [[...colour, FILL], [...colour, EDGE]];
  for (let place = 0; place < bits.length; place++) {
    if (!bits[place]) continue;
    const x = place % width;
    const y = (place - x) / width;
    const inside =
      (x > 0 ? bits[place - 1] : left === 0) &&
      (x < width - 1 ? bits[place + 1] : left + width === across) &&
      (y > 0 ? bits[place - width] : top === 0) &&
      (y < height - 1 ? bits[place + width] : top + height === down);
    pixels.set(inside ? fill : edge, 4 * place);
  }
}

/** A map of values from 0 on, from its least to its largest colour, bilinear between the centres of its cells. */
export function heatLayer(map) {
  const rows = map.length;
  const columns = map[0].length;
  const most = Math.max(...map.flat()) || 1;
  const across = Array.from({ length: columns * CELL }, (_, x) => between(x, columns));
  const down = Array.from({ length: rows * CELL }, (_, y) => between(y, rows));
  return drawn(columns * CELL, rows * CELL, (pixels) => {
    down.forEach((vertical, y) => {
      across.forEach((horizontal, x) => {
        const value = bilinear(map, horizontal, vertical) / most;
        pixels.set([...heatColour(value), COLD + value * (255 - COLD)], 4 * (y * across.length + x));
      });
    });
  });
}

/** The two cells whose centres a drawn pixel lies between, and how far it is on the way. */
function between(pixel, count) {
  const place = Math.min(Math.max((pixel + 0.5) / CELL - 0.5, 0), count - 1);
  const low = Math.floor(place);
  return [low, Math.min(low + 1, count - 1), place - low];
}

function bilinear(map, [left, right, along], [top, bottom, below]) {
  const upper = map[top][left] + along * (map[top][right] - map[top][left]);
  const lower = map[bottom][left] + along * (map[bottom][right] - map[bottom][left]);
  return upper + below * (lower - upper);
}

/** A canvas whose pixels, RGBA, `paint` sets. */
function drawn(width, height, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  paint(image.data);
  context.putImageData(image, 0, 0);
  return canvas;
}
