// Decodes pictures and runs the network, in a thread of its own so that the page never stands still.

import { prepare } from "./preprocessing.js";
import { open } from "./runtime.js";

let opening = null;

self.onmessage = async ({ data: { number, kind, ...rest } }) => {
  try {
    const [value, moved] = await { open: opened, run: answered }[kind](rest);
    self.postMessage({ number, value }, moved);
  } catch (error) {
    self.postMessage({ number, error: error.message });
  }
};

async function opened({ site }) {
  await run(site, null);
  return [null, []];
}

/** The network's answer. It is opened once; after a failure, such as a GPU that went away, it is opened again. */
async function run(site, input) {
  opening ??= open(site);
  try {
    const network = await opening;
    return input && (await network(input));
  } catch (error) {
    opening = null;
    throw error;
  }
}

async function answered({ site, file }) {
  const picture = await decoded(file);
  const { width, height } = picture;
  const input = prepare(site.preprocessing, picture);
  picture.close();
  const { logits, maps } = await run(site, input);
  return [{ width, height, logits, maps }, [logits.buffer, ...(maps ? [maps.values.buffer] : [])]];
}

/** The picture's pixels as they are stored, upright, as vankit reads them. */
async function decoded(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const image = await createImageBitmap(file, options).catch(() => {
    throw new Error(`${file.name ?? "This"} is not a picture that this browser can read.`);
  });
  const { width, height } = image;
  return { width, height, read: (...part) => onWhite(image, ...part), close: () => image.close() };
}

function onWhite(image, left, top, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, left, top, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}
