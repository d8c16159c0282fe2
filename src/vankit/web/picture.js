// The canvas: the picture, as large as the page allows, and what was found over it.

import { css, inkOn } from "./colours.js";
import { placeTag } from "./tags.js";

const TALLEST = 0.72; // of the window's height
const SMALLEST = 420; // to which the longer side of a small picture is enlarged, in CSS pixels
const NARROW = 480; // CSS pixels, below which names are written smaller
const FADED = 0.25; // opacity of the others, while one object is emphasised

export class Picture {
  #canvas;
  #context;
  #image = null;
  #size = [1, 1];
  #scaled = null;
  #over = { objects: [], heat: null, opacity: 0, emphasised: null };

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => this.#fit()).observe(canvas.parentElement);
    window.addEventListener("resize", () => this.#fit());
  }

  /** Shows an ImageBitmap, or a grey area where there is none; coordinates are pixels of a picture of this size. */
  show(image, width, height) {
    this.#image = image;
    this.#size = [width, height];
    this.#scaled = null;
    this.#fit();
  }

  /**
   * Draws over it: `objects` with `colour`, `text`, `mask` (a mask layer or null), `boxed` and `bbox`; `heat`, {canvas,
   * region} or null, at `opacity`; the `emphasised` one of the objects stands out.
   */
  draw(over) {
    Object.assign(this.#over, over);
    this.#paint();
  }

  #fit() {
    const room = this.#canvas.parentElement.clientWidth;
    if (!room) return;
    const [width, height] = this.#size;
    const enlarged = Math.max(2, SMALLEST / Math.max(width, height));
    const scale = Math.min(room / width, (TALLEST * window.innerHeight) / height, enlarged);
    const density = window.devicePixelRatio;
    const [across, down] = [width, height].map((side) => Math.max(1, Math.round(side * scale * density)));
    if (this.#scaled?.width !== across || this.#scaled?.height !== down) {
      this.#canvas.width = across;
      this.#canvas.height = down;
      this.#canvas.style.width = `${across / density}px`;
      this.#canvas.style.height = `${down / density}px`;
      this.#scaled = this.#rescaled(across, down);
    }
    this.#paint();
  }

  /** The picture at the canvas's size: to scale a photograph anew at each move of a slider would be slow. */
  #rescaled(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    context.fillStyle = "#808080";
    if (!this.#image) context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    if (this.#image) context.drawImage(this.#image, 0, 0, width, height);
    return canvas;
  }

  #paint() {
    if (!this.#scaled) return;
    const context = this.#context;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    context.drawImage(this.#scaled, 0, 0);
    this.#paintHeat();
    this.#paintMasks();
    this.#paintBoxes();
  }

  get #scale() {
    return [this.#canvas.width / this.#size[0], this.#canvas.height / this.#size[1]];
  }

  #paintHeat() {
    const { heat, opacity } = this.#over;
    if (!heat || !opacity) return;
    const context = this.#context;
    const [x, y, width, height] = this.#toCanvas(heat.region);
    context.save();
    context.globalAlpha = opacity;
    // Without colours of its own, the picture does not mix with those of the heat.
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(x, y, width, height);
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = opacity;
    context.drawImage(heat.canvas, x, y, width, height);
    this.#dimOutside([x, y, width, height], opacity);
    context.restore();
  }

  /** What the network did not see. */
  #dimOutside(region, opacity) {
    const context = this.#context;
    context.globalAlpha = 0.6 * opacity;
    context.fillStyle = "#000";
    context.beginPath();
    context.rect(0, 0, this.#canvas.width, this.#canvas.height);
    context.rect(...region);
    context.fill("evenodd");
  }

  #paintMasks() {
    const context = this.#context;
    for (const each of [...this.#over.objects].reverse()) {
      if (!each.mask) continue;
      context.globalAlpha = this.#presence(each);
      const { left, top, width, height } = each.mask;
      context.drawImage(each.mask.canvas, ...this.#toCanvas([left, top, width, height]));
    }
    context.globalAlpha = 1;
  }

  #paintBoxes() {
    const context = this.#context;
    const density = window.devicePixelRatio;
    const objects = this.#over.objects;
    context.lineWidth = 2 * density;
    for (const each of [...objects].reverse()) {
      if (!each.boxed) continue;
      context.globalAlpha = this.#presence(each);
      context.strokeStyle = css(each.colour);
      context.strokeRect(...this.#toCanvas(each.bbox));
    }
    context.globalAlpha = 1;
    this.#paintTags(objects.filter((each) => this.#presence(each) === 1), density);
  }

  #paintTags(objects, density) {
    const context = this.#context;
    const size = (this.#canvas.width < NARROW * density ? 11 : 13) * density;
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const [height, padding] = [1.5 * size, 0.4 * size];
    const taken = [];
    for (const each of objects) {
      const width = context.measureText(each.text).width + 2 * padding;
      const area = [this.#canvas.width, this.#canvas.height];
      const place = placeTag(this.#anchor(each), [width, height], area, taken);
      if (!place) continue;
      context.fillStyle = css(each.colour);
      context.fillRect(...place, width, height);
      context.fillStyle = inkOn(each.colour);
      context.fillText(each.text, place[0] + padding, place[1] + height / 2);
    }
  }

  /** Where an object's name belongs: at its box, or in the middle of its mask. */
  #anchor(object) {
    const [x, y] = object.boxed ? object.bbox : (object.mask?.middle ?? [0, 0]);
    return { boxed: object.boxed, box: this.#toCanvas(object.boxed ? object.bbox : [x, y, 0, 0]) };
  }

  #presence(object) {
    const { emphasised } = this.#over;
    return !emphasised || emphasised === object ? 1 : FADED;
  }

  #toCanvas([x, y, width, height]) {
    const [across, down] = this.#scale;
    return [x * across, y * down, width * across, height * down];
  }
}
