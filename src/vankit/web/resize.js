// Resizing as Pillow does it, bit by bit: what the network was trained and measured on is resized by Pillow, and a
// canvas resizes in a way of its own in every browser.

const PRECISION = 22; // bits after the point: weights are whole numbers, so rounding is the same everywhere
const ONE = 2 ** PRECISION;
const STRIP = 2 ** 20; // pixels that are read at once: a whole photograph would take four bytes for each of them

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// By timm's names: how far a filter reaches in pixels of the smaller picture, and its weight there
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * A part of a resized picture, of which only that part is computed.
 *
 * @param picture {width, height, read(left, top, width, height) -> its RGBA bytes}
 * @param size [width, height] that the whole picture would have
 * @param crop {left, top, width, height} in pixels of that size; what lies beyond the picture is black
 * @param interpolation nearest, box, bilinear, hamming, bicubic or lanczos
 * @returns RGB, crop.height * crop.width * 3 bytes
 */
export function resizedCrop(picture, size, crop, interpolation) {
  if (!downFirst(picture, size)) return acrossFirst(picture, size, crop, interpolation);
  const turnedCrop = { left: crop.top, top: crop.left, width: crop.height, height: crop.width };
  const found = acrossFirst(turned(picture), [size[1], size[0]], turnedCrop, interpolation);
  return transposed(found, crop.height, crop.width, 3);
}

/** Which direction comes first decides what is rounded. Pillow before 13 always began across. */
function downFirst({ width, height }, size) {
  const less = height - size[1];
  return less > 0 && less > 2 * (width - size[0]);
}

function turned(picture) {
  const read = (left, top, width, height) => transposed(picture.read(top, left, height, width), height, width, 4);
  return { width: picture.height, height: picture.width, read };
}

/** Of pixels with so many channels, `width` in a row, those with `height` in a row. */
function transposed(pixels, width, height, channels) {
  const found = new Uint8ClampedArray(pixels.length);
  for (let y = 0, from = 0; y < height; y++) {
    for (let x = 0; x < width; x++, from += channels) {
      const to = (x * height + y) * channels;
      for (let i = 0; i < channels; i++) found[to + i] = pixels[from + i];
    }
  }
  return found;
}

function acrossFirst(picture, size, crop, interpolation) {
  const across = taps(picture.width, size[0], crop.left, crop.width, interpolation);
  const down = taps(picture.height, size[1], crop.top, crop.height, interpolation);
  const found = new Uint8ClampedArray(crop.width * crop.height * 3);
  if (across.count && down.count) {
    resizeDown(resizeAcross(picture, across, down), across, down, found, crop);
  }
  return found;
}

/** For each line of the crop within the picture the lines it is made of: `starts`, `lengths`, `weights`. */
function taps(before, after, crop, length, interpolation) {
  const from = Math.max(0, crop);
  const count = Math.max(0, Math.min(after, crop + length) - from);
  const offset = from - crop; // lines of the crop that are black
  const found = interpolation === "nearest" ? nearest : weighted;
  return { count, offset, ...bounds(found(before, after, from, count, interpolation)) };
}

/** The first line that is needed, and the one after the last. */
function bounds(found) {
  const ends = found.starts.map((start, i) => start + found.lengths[i]);
  return { ...found, first: Math.min(...found.starts), end: Math.max(...ends) };
}

function nearest(before, after, from, count) {
  const starts = new Int32Array(count);
  const scale = before / after;
  let place = scale * 0.5;
  for (let i = 0; i < from + count; i++) {
    if (i >= from) starts[i - from] = Math.trunc(place);
    place += scale; // as Pillow adds them up; a product would be rounded elsewhere
  }
  return { starts, lengths: new Int32Array(count).fill(1), weights: new Int32Array(count).fill(ONE), stride: 1 };
}

function weighted(before, after, from, count, interpolation) {
  const [reach, filter] = FILTERS[interpolation];
  const scale = before / after;
  const stretch = Math.max(scale, 1); // of the filter, so that no pixel of a larger picture is passed over
  const support = reach * stretch;
  const stride = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(count);
  const lengths = new Int32Array(count);
  const weights = new Int32Array(count * stride);
  for (let i = 0; i < count; i++) {
    const centre = (from + i + 0.5) * scale;
    starts[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    lengths[i] = Math.min(before, Math.trunc(centre + support + 0.5)) - starts[i];
    const at = (j) => filter((j + starts[i] - centre + 0.5) * (1 / stretch));
    weights.set(whole(Array.from({ length: lengths[i] }, (_, j) => at(j))), i * stride);
  }
  return { starts, lengths, weights, stride };
}

/** Weights that add up to one, as whole numbers. */
function whole(weights) {
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => {
    const scaled = (sum === 0 ? weight : weight / sum) * ONE;
    return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
  });
}

/** The lines of the picture that are needed, of the width of the crop: RGB. */
function resizeAcross(picture, across, down) {
  const width = across.end - across.first;
  const rows = down.end - down.first;
  const found = new Uint8ClampedArray(rows * across.count * 3);
  const strip = Math.max(1, Math.floor(STRIP / width));
  for (let row = 0; row < rows; row += strip) {
    const height = Math.min(strip, rows - row);
    const pixels = picture.read(across.first, down.first + row, width, height);
    stripAcross(pixels, width, height, across, found.subarray(row * across.count * 3));
  }
  return found;
}

function stripAcross(pixels, width, height, { count, first, starts, lengths, weights, stride }, found) {
  for (let row = 0, to = 0; row < height; row++) {
    for (let i = 0; i < count; i++, to += 3) {
      let at = 4 * (row * width + starts[i] - first);
      let red = ONE / 2; // rounds to the nearest
      let green = ONE / 2;
      let blue = ONE / 2;
      for (let tap = i * stride, end = tap + lengths[i]; tap < end; tap++, at += 4) {
        const weight = weights[tap];
        red = (red + Math.imul(pixels[at], weight)) | 0;
        green = (green + Math.imul(pixels[at + 1], weight)) | 0;
        blue = (blue + Math.imul(pixels[at + 2], weight)) | 0;
      }
      found[to] = red >> PRECISION;
      found[to + 1] = green >> PRECISION;
      found[to + 2] = blue >> PRECISION;
    }
  }
}

function resizeDown(lines, across, { count, offset, first, starts, lengths, weights, stride }, found, crop) {
  const width = across.count * 3;
  const sums = new Int32Array(width);
  for (let row = 0; row < count; row++) {
    sums.fill(ONE / 2);
    for (let tap = 0; tap < lengths[row]; tap++) {
      addLine(sums, lines, (starts[row] + tap - first) * width, weights[row * stride + tap]);
    }
    const to = 3 * ((row + offset) * crop.width + across.offset);
    for (let i = 0; i < width; i++) found[to + i] = sums[i] >> PRECISION;
  }
}

function addLine(sums, lines, at, weight) {
  for (let i = 0; i < sums.length; i++) sums[i] += Math.imul(lines[at + i], weight);
}
