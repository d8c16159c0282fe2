// From a picture to the network's input: the same numbers as vankit.data.preprocessing.

import { resizedCrop } from "./resize.js";

/** To the nearest whole number, and a half to the even one, as Python rounds. */
function rounded(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** [height, width] that the resized picture just covers. */
function cover({ input_size: [, height, width], crop_pct: part }) {
  return [Math.floor(height / part), Math.floor(width / part)];
}

/** [width, height] that a picture of this size is resized to, before the crop. */
export function resized(settings, width, height) {
  const [coverHeight, coverWidth] = cover(settings);
  if (coverHeight === coverWidth) {
    const long = Math.trunc((coverHeight * Math.max(width, height)) / Math.min(width, height));
    return width <= height ? [coverHeight, long] : [long, coverHeight];
  }
  const ratio = Math.min(height / coverHeight, width / coverWidth);
  return [rounded(width / ratio), rounded(height / ratio)];
}

/** Where a centred crop starts; below 0 where it is the longer one. */
function offset(size, crop) {
  return crop > size ? -Math.floor((crop - size) / 2) : rounded((size - crop) / 2);
}

function cropOf({ input_size: [, height, width] }, size) {
  return { left: offset(size[0], width), top: offset(size[1], height), width, height };
}

/**
 * @param settings of the site: input_size, mean, std, crop_pct, interpolation
 * @param picture see resizedCrop
 * @returns float32, 3 * height * width
 */
export function prepare(settings, picture) {
  const size = resized(settings, picture.width, picture.height);
  const crop = cropOf(settings, size);
  return normalised(settings, resizedCrop(picture, size, crop, settings.interpolation));
}

function normalised({ mean, std }, pixels) {
  const area = pixels.length / 3;
  const found = new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const scale = Math.fround(1 / (255 * std[channel]));
    const shift = Math.fround(-mean[channel] / std[channel]);
    for (let i = 0; i < area; i++) {
      found[channel * area + i] = Math.fround(pixels[3 * i + channel] * scale) + shift;
    }
  }
  return found;
}

/** [x, y, width, height]: the part of a picture that the network sees, in its pixels; it may reach beyond it. */
export function region(settings, width, height) {
  const size = resized(settings, width, height);
  const crop = cropOf(settings, size);
  const across = width / size[0];
  const down = height / size[1];
  return [crop.left * across, crop.top * down, crop.width * across, crop.height * down];
}
