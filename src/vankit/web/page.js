// What happens on the page: a picture comes in, the backend is asked, the answer is shown.

import { foundItems, jsonText, labelItems, percent, summary, targetOptions } from "./answers.js";
import * as backend from "./backend.js";
import { css } from "./colours.js";
import { watchCopyButtons } from "./copying.js";
import { foundIn } from "./found.js";
import { watchInputs } from "./input.js";
import { heatLayer } from "./layers.js";
import { Picture } from "./picture.js";

const SEEN = 0.6; // opacity of Grad-CAM for a label that is pressed
const TASKS = { classify: "classifier", detect: "detector", segment: "segmenter", panoptic: "panoptic segmenter" };

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
const stage = new Picture(at.stage);

let models = [];
let picture = null; // {file, opening: a promise of its ImageBitmap, or of null}
let answer = null; // {entry, found, explanations: Map from target to explanation}
let pinned = null; // what was pressed in #found
let running = new AbortController();
let asking = null; // the target of the explanation under way

function say(state, text, urgent = false) {
  document.documentElement.dataset.state = state;
  at.message.setAttribute("role", urgent ? "alert" : "status");
  at.message.textContent = text;
  at.again.hidden = true;
}

function fail(error) {
  console.debug(error); // with its trace, should it be a fault of ours
  say("failed", error.message || String(error), true);
  at.message.scrollIntoView({ block: "nearest" });
  at.again.hidden = error.status < 500 && ![408, 429].includes(error.status);
  at.access.hidden = error.status !== 401;
  if (!at.access.hidden) at.token.focus();
}

/** Runs the one task that may be under way; another one takes its place. `task` returns what to say at its end. */
async function attempt(text, task) {
  running.abort();
  const { signal } = (running = new AbortController());
  say(models.length ? "working" : "starting", text);
  try {
    const said = await task(signal);
    if (!signal.aborted) say(answer ? "done" : "ready", said);
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
}

const model = () => models[at.model.selectedIndex];

async function start() {
  await attempt("Starting …", async () => {
    const found = await backend.connect();
    models = found.models;
    at.access.hidden = true;
    at.model.replaceChildren(...models.map(({ name }) => new Option(name, name)));
    at.choice.hidden = false;
    at.privacy.textContent = found.remote
      ? "Your picture is sent to this service and nowhere else."
      : "Your picture never leaves this device.";
    describeModel();
    return "Ready for a picture.";
  });
  if (models.length && picture) await ask();
}

function describeModel() {
  const { task, classes, version } = model();
  const count = classes.length === 1 ? "1 class" : `${classes.length.toLocaleString("en")} classes`;
  at.facts.textContent = `${TASKS[task]} · ${count} · version ${version}`;
}

async function look(file) {
  const former = picture;
  const own = { file, opening: createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null) };
  picture = own;
  at.stage.setAttribute("aria-label", file.name);
  forget();
  own.opening.then((image) => {
    if (picture !== own) return;
    showPicture(image, image?.width, image?.height);
    if (image) former?.opening.then((before) => before?.close()); // not before: it may have to be drawn until now
  });
  await ask();
}

function showPicture(image, width, height) {
  at.frame.hidden = !width;
  at.viewer.classList.toggle("filled", Boolean(width));
  if (width) stage.show(image, width, height);
}

/** Takes back what was said of another picture or by another model. */
function forget() {
  answer = null;
  asking = null;
  pinned = null;
  for (const part of [at.answer, at.controls, at.code, at.unseen]) part.hidden = true;
  stage.draw({ objects: [], heat: null, emphasised: null });
}

async function ask() {
  forget();
  const own = picture;
  await attempt(`Looking at ${own.file.name} …`, async (signal) => {
    const begun = performance.now();
    const entry = await backend.predict(model(), own.file, signal);
    const took = Math.max(1, Math.round(performance.now() - begun));
    const image = await own.opening;
    if (signal.aborted) return "";
    showPicture(image, entry.width, entry.height);
    at.unseen.hidden = Boolean(image);
    showAnswer(entry);
    if (heatWanted()) await explain(signal);
    return `${summary(entry, shown())} · answered in ${took} ms`;
  });
}

function showAnswer(entry) {
  answer = { entry, found: foundIn(entry, model().classes), explanations: new Map() };
  const classified = Boolean(entry.labels);
  at.answer.hidden = false;
  at.heading.textContent = classified ? "Labels" : entry.objects ? "Objects" : "Shares of the picture";
  at.labels.hidden = !classified;
  at.found.hidden = classified;
  at.labels.replaceChildren(...labelItems(entry.labels ?? [], model().explains ? explainLabel : null));
  at.scoring.hidden = !entry.objects;
  at.explaining.hidden = !model().explains;
  at.controls.hidden = at.scoring.hidden && at.explaining.hidden;
  at.target.replaceChildren(...targetOptions(entry.labels ?? [], model().classes));
  at.json.textContent = jsonText(entry);
  showCode();
  showFound();
  showHeat();
}

function showCode() {
  const lines = backend.commands(model(), picture.file.name || "photo.jpg");
  at.code.hidden = false;
  at.coding.hidden = at.lines.hidden = !lines;
  for (const name of ["curl", "python"]) at[name].textContent = lines?.[name] ?? "";
}

/** What the slider lets through. */
function shown() {
  return answer.found.filter(({ boxed, score }) => !boxed || score >= at.score.valueAsNumber);
}

function showFound() {
  const objects = shown();
  const { entry } = answer;
  if (!objects.includes(pinned)) pinned = null;
  const area = entry.width * entry.height;
  at.found.replaceChildren(...foundItems(objects, pinned, ({ colour }) => css(colour), area, emphasise));
  at.scored.textContent = `${Math.round(100 * at.score.valueAsNumber)}% · ${objects.length} of ${answer.found.length}`;
  at.nothing.hidden = Boolean(entry.labels?.length || objects.length);
  at.nothing.textContent = nothingText(entry);
  stage.draw({ objects, emphasised: pinned });
  describeStage();
}

function nothingText({ labels }) {
  if (labels) return "No label reaches its threshold.";
  if (answer.found.length) return "No score is that high: move the slider to the left.";
  return "Nothing was found in this picture.";
}

/** One object stands out while it is looked at, or until it is pressed again. */
function emphasise(object, pressed) {
  if (pressed) {
    pinned = pinned === object ? null : object;
    const objects = shown();
    [...at.found.querySelectorAll("button")].forEach((button, i) => {
      button.setAttribute("aria-pressed", String(objects[i] === pinned));
    });
  }
  stage.draw({ emphasised: object ?? pinned });
}

function describeStage() {
  const { labels } = answer.entry;
  const said = labels ? labels.slice(0, 3).map(({ name, score }) => `${name} ${percent(score)}`).join(", ") : "";
  const heat = heatOnShow();
  const parts = [`${picture.file.name}: ${said || summary(answer.entry, shown())}`];
  if (heat) parts.push(`coloured by what speaks for ${heat.name}`);
  at.stage.setAttribute("aria-label", parts.join("; "));
}

const heatWanted = () => model().explains && at.heat.valueAsNumber > 0;

function heatOnShow() {
  return heatWanted() ? answer?.explanations.get(at.target.value) : undefined;
}

function showHeat() {
  const opacity = at.heat.valueAsNumber;
  const heat = heatOnShow() ?? null;
  at.heated.textContent = opacity ? `${Math.round(100 * opacity)}%` : "off";
  stage.draw({ heat, opacity });
  if (answer) describeStage();
}

async function explain(signal) {
  const { explanations } = answer;
  const target = at.target.value;
  if (explanations.has(target)) return showHeat();
  asking = target;
  try {
    const index = target === "" ? null : Number(target);
    const { maps, region } = await backend.explain(model(), picture.file, index, signal);
    if (signal.aborted) return;
    const [{ name, score, map }] = maps;
    explanations.set(target, { canvas: heatLayer(map), region, name, score });
    showHeat();
  } finally {
    if (!signal.aborted) asking = null;
  }
}

/** Shows the heat that the controls ask for; what is not known yet is asked for, once. */
async function updateHeat() {
  showHeat();
  const target = at.target.value;
  if (!answer || !heatWanted() || answer.explanations.has(target) || asking === target) return;
  const name = at.target.selectedOptions[0].text;
  await attempt(`Looking for what speaks for ${name} …`, async (signal) => {
    await explain(signal);
    const heat = heatOnShow();
    return heat ? `The colours show what speaks for ${heat.name} (${percent(heat.score)}).` : "";
  });
}

function explainLabel(index) {
  at.target.value = index;
  if (!at.heat.valueAsNumber) at.heat.value = SEEN;
  updateHeat();
}

function changeModel() {
  describeModel();
  if (picture) ask();
}

watchInputs({
  inputs: [at.file, at.camera],
  zone: at.drop,
  take: (file) => (models.length ? look(file) : fail(new Error("There is no model to ask yet."))),
  refuse: (why) => say("failed", why, true),
});
watchCopyButtons((text) => (at.copied.textContent = text));
at.model.addEventListener("change", changeModel);
at.score.addEventListener("input", showFound);
at.heat.addEventListener("input", updateHeat);
at.target.addEventListener("change", updateHeat);
at.again.addEventListener("click", () => (models.length && picture ? ask() : start()));
at.access.addEventListener("submit", (event) => {
  event.preventDefault();
  backend.useToken(at.token.value);
  at.token.value = "";
  start();
});
start();
