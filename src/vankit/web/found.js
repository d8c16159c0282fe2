// The objects or segments of an answer, ready to be drawn and listed.

import { percent } from "./answers.js";
import { classColours } from "./colours.js";
import { maskLayer } from "./layers.js";

class Found {
  #layer;

  constructor(entry, colour, boxed) {
    Object.assign(this, entry, { colour, boxed });
    this.text = boxed ? `${entry.name} ${percent(entry.score)}` : entry.name;
  }

  /** Made when it is first drawn: most objects of low scores never are. */
  get mask() {
    if (this.#layer === undefined) this.#layer = this.segmentation ? maskLayer(this.segmentation, this.colour) : null;
    return this.#layer;
  }
}

/** Empty for a classifier's answer. */
export function foundIn(answer, classes) {
  const entries = answer.objects ?? answer.segments ?? [];
  const colours = classColours(classes, entries.map(({ name }) => name));
  return entries.map((entry) => new Found(entry, colours.get(entry.name), Boolean(answer.objects)));
}
