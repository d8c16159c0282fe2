// COCO's run-length encoding of masks: runs of 0 and 1 in turn, column after column, in five-bit digits of text.

/** The lengths of the runs, the first one of zeros. */
export function runLengths(text) {
  const lengths = [];
  let place = 0;
  while (place < text.length) {
    let value = 0;
    let shift = 0;
    let digit;
    do {
      digit = text.charCodeAt(place++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    // From the fourth on, they are differences from the last run of the same kind.
    lengths.push(lengths.length > 2 ? value + lengths.at(-2) : value);
  }
  return lengths;
}

/** Calls `use(column, top, bottom)` for every vertical strip of the mask, `bottom` excluded. */
export function eachStrip({ size: [height], counts }, use) {
  let start = 0;
  runLengths(counts).forEach((length, i) => {
    const end = start + length;
    while (i % 2 && start < end) {
      const column = Math.floor(start / height);
      const stop = Math.min(end, (column + 1) * height);
      use(column, start - column * height, stop - column * height);
      start = stop;
    }
    start = end;
  });
}

/**
 * The mask with every `step`-th row and column kept, cut to what is in it.
 *
 * Returns {left, top, width, height, bits}, in kept pixels, and `middle`: a place well inside, in the picture's pixels.
 */
export function decodeMask(mask, step = 1) {
  const strips = [];
  let tallest = 0;
  let middle = [0, 0];
  eachStrip(mask, (column, top, bottom) => {
    if (bottom - top > tallest) {
      tallest = bottom - top;
      middle = [column + 0.5, (top + bottom) / 2];
    }
    const kept = [column / step, Math.ceil(top / step), Math.ceil(bottom / step)];
    if (column % step === 0 && kept[1] < kept[2]) strips.push(kept);
  });
  if (!strips.length) return { left: 0, top: 0, width: 0, height: 0, bits: new Uint8Array(0), middle };

  const left = strips[0][0];
  const top = strips.reduce((least, strip) => Math.min(least, strip[1]), Infinity);
  const width = strips.at(-1)[0] - left + 1;
  const height = strips.reduce((most, strip) => Math.max(most, strip[2]), 0) - top;
  const bits = new Uint8Array(width * height);
  for (const [column, first, end] of strips) {
    for (let row = first; row < end; row++) bits[(row - top) * width + column - left] = 1;
  }
  return { left, top, width, height, bits, middle };
}
