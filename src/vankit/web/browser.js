// The backend of a site without a server: the network runs in the visitor's browser, and pictures never leave it.

import { region } from "./preprocessing.js";

const SHOWN = 10; // labels, as many as the page asks of a service
const BEST = 5; // beside an explanation

const waiting = new Map(); // by number, who asked the worker
const answers = new WeakMap(); // by picture: one run gives its labels and the maps of all classes
let site = null;
let worker = null;

export async function connect() {
  site = await described();
  tell({ kind: "open", site }).catch(() => {}); // it is said with the first picture, for which it is tried again
  const { name, classes, multi_label, explains } = site;
  return { models: [{ name, task: "classify", version: "1", classes, multi_label, explains }], remote: false };
}

export async function predict(model, file, signal) {
  const { logits, width, height } = await answer(file, signal);
  const labels = labelsOf(scoresOf(logits), SHOWN);
  return { source: nameOf(file), width, height, labels };
}

export async function explain(model, file, target, signal) {
  const { logits, maps, width, height } = await answer(file, signal);
  const scores = scoresOf(logits);
  const index = target ?? ranked(scores)[0];
  return {
    source: nameOf(file),
    width,
    height,
    labels: labelsOf(scores, BEST),
    maps: [{ ...labelOf(scores, index), map: rowsOf(maps, index) }],
    region: region(site.preprocessing, width, height),
  };
}

/** There is no service to ask in other ways. */
export function commands() {
  return null;
}

async function described() {
  try {
    const response = await fetch(new URL("./site.json", import.meta.url), { cache: "no-cache" });
    return { ...(await response.json()), device: new URL(location).searchParams.get("device") };
  } catch {
    throw new Error("site.json of this page cannot be loaded. Are you connected?");
  }
}

const nameOf = (file) => file.name ?? "picture";

function answer(file, signal) {
  signal?.throwIfAborted();
  if (!answers.has(file)) {
    const asked = tell({ kind: "run", site, file });
    answers.set(file, asked);
    asked.catch(() => answers.delete(file));
  }
  return signal ? Promise.race([answers.get(file), aborted(signal)]) : answers.get(file);
}

function aborted(signal) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
}

function scoresOf(logits) {
  if (!logits.every(Number.isFinite)) throw new Error("The network's answer to this picture is not finite.");
  if (site.multi_label) return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  const highest = logits.reduce((best, logit) => Math.max(best, logit));
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** Indices, best first. */
function ranked(scores) {
  return Array.from(scores.keys()).sort((i, j) => scores[j] - scores[i]);
}

const labelOf = (scores, index) => ({ name: site.classes[index], index, score: scores[index] });

function labelsOf(scores, count) {
  const given = ranked(scores).filter((i) => !site.multi_label || scores[i] >= site.thresholds[i]);
  return given.slice(0, count).map((i) => labelOf(scores, i));
}

/** The map of a class as rows of numbers. */
function rowsOf({ values, height, width }, index) {
  const row = (i) => Array.from(values.subarray((index * height + i) * width, (index * height + i + 1) * width));
  return Array.from({ length: height }, (_, i) => row(i));
}

/** Asks the worker. */
function tell(message) {
  return new Promise((resolve, reject) => {
    const number = waiting.size ? Math.max(...waiting.keys()) + 1 : 0;
    waiting.set(number, { resolve, reject });
    started().postMessage({ number, ...message });
  });
}

// A worker from the site's address would not be under the page's Content-Security-Policy. One from a blob is, so what
// the policy says holds for the code that sees the pictures: it can send nothing anywhere.
function started() {
  if (worker) return worker;
  const code = `import ${JSON.stringify(new URL("./worker.js", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  worker = new Worker(address, { type: "module" });
  worker.onmessage = ({ data }) => settle(data);
  worker.onerror = (event) => giveUp(event);
  return worker;
}

function settle({ number, value, error }) {
  const { resolve, reject } = waiting.get(number);
  waiting.delete(number);
  if (error === undefined) resolve(value);
  else reject(new Error(error));
}

function giveUp({ message }) {
  worker.terminate();
  worker = null;
  const why = message ? ` (${message})` : "";
  for (const { reject } of waiting.values()) reject(new Error(`The network cannot run in this browser${why}.`));
  waiting.clear();
}
