// Where the names of objects are written, so that none covers another.

/**
 * The upper left corner for a tag, which is then added to those taken; null if every place is.
 *
 * `box` is [x, y, width, height]; a boxed object has its tag at the box's edges, another one in the middle.
 */
export function placeTag({ box, boxed }, [width, height], [across, down], taken) {
  const [x, y, w, h] = box;
  const right = x + w - width;
  const beside = [
    [x, y - height], [x, y], [x, y + h], [right, y - height], [right, y], [right, y + h - height],
  ];
  const around = [0, -1, 1, -2, 2].map((rows) => [x - width / 2, y - height / 2 + rows * height]);
  const inside = (boxed ? beside : around).map(([left, top]) => [
    Math.max(0, Math.min(left, across - width)), Math.max(0, Math.min(top, down - height)),
  ]);
  const place = inside.find(([left, top]) => !taken.some((tag) => meet([left, top, width, height], tag)));
  if (place) taken.push([...place, width, height]);
  return place ?? null;
}

function meet([x, y, width, height], [left, top, across, down]) {
  return x < left + across && left < x + width && y < top + down && top < y + height;
}
