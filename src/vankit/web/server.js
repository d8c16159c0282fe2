// The backend of a service: everything is asked of the address that this file came from.

const KEPT = "vankit-token";
const TYPES = {
  avif: "avif", bmp: "bmp", gif: "gif", heic: "heic", heif: "heif", jpeg: "jpeg", jpg: "jpeg", png: "png", tif: "tiff",
  tiff: "tiff", webp: "webp",
};

let token = kept();

export function useToken(text) {
  token = text.trim();
  try {
    sessionStorage.setItem(KEPT, token);
  } catch {
    // A browser that keeps nothing asks again after a reload.
  }
}

export async function connect() {
  const { models } = await ask("models", {});
  if (!models.length) throw new Error("The service has no models.");
  return { models, remote: true };
}

export async function predict(model, file, signal) {
  return picture(await send(path("predict", model) + asked(model), file, signal));
}

export async function explain(model, file, target, signal) {
  const query = target === null ? "" : `?target=${encodeURIComponent(className(model, target))}`;
  return picture(await send(path("explain", model) + query, file, signal));
}

/** More than a program gets unasked. A multi-label network's labels are those that reach their thresholds. */
function asked({ task, multi_label: multiLabel }) {
  if (task === "detect") return "?score=0.05";
  return task === "classify" && !multiLabel ? "?top_k=10" : "";
}

/** A class's index, but for classes whose names are numbers: the service takes a name before an index. */
function className({ classes }, index) {
  return classes.includes(String(index)) ? classes[index] : index;
}

/** Lines that ask the same of the service. The token is named and never written. */
export function commands(model, fileName) {
  const address = url(path("predict", model)).href.replaceAll("'", "%27");
  return { curl: curlCommand(address, fileName), python: pythonLines(address, fileName) };
}

function curlCommand(address, fileName) {
  const parts = [`curl --data-binary ${shell(`@${fileName}`)}`, `-H ${shell(`Content-Type: ${mediaType(fileName)}`)}`];
  if (token) parts.push('-H "Authorization: Bearer $TOKEN"');
  return [...parts, shell(address, true)].join(" \\\n  ");
}

// JSON's texts are Python's, too.
function pythonLines(address, fileName) {
  const type = JSON.stringify(mediaType(fileName));
  return [
    token ? "import json, os" : "import json",
    "from pathlib import Path",
    "from urllib.request import Request, urlopen",
    "",
    `url = ${JSON.stringify(address)}`,
    `photo = Path(${JSON.stringify(fileName)}).read_bytes()`,
    `request = Request(url, photo, {"Content-Type": ${type}})`,
    ...(token ? ['request.add_header("Authorization", "Bearer " + os.environ["TOKEN"])'] : []),
    "print(json.load(urlopen(request)))",
  ].join("\n");
}

function shell(text, always = false) {
  return !always && /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function mediaType(fileName) {
  const type = TYPES[fileName.split(".").pop().toLowerCase()];
  return type ? `image/${type}` : "application/octet-stream";
}

function path(verb, model) {
  return `${verb}/${encodeURIComponent(model.name)}`;
}

function url(relative) {
  return new URL(`./${relative}`, import.meta.url);
}

async function send(relative, file, signal) {
  const body = await bytes(file);
  // A file that says it is a text may be a picture all the same: the service looks at what is in it.
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return ask(relative, { method: "POST", body, signal, headers: { "Content-Type": type } });
}

async function bytes(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error(`${file.name} cannot be read: is it a folder, or was it moved or changed?`);
  }
}

async function ask(relative, { headers = {}, ...options }) {
  const authorised = token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
  let response;
  try {
    response = await fetch(url(relative), { cache: "no-store", ...options, headers: authorised });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it still running?");
  }
  return read(response);
}

async function read(response) {
  let content;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    content = null;
  }
  if (response.ok && content) return content;
  const why = content?.error ?? `The service answered with ${response.status} ${response.statusText}`.trim();
  throw Object.assign(new Error(why), { status: response.status });
}

function picture({ pictures: [entry] }) {
  if (entry.error) throw Object.assign(new Error(entry.error), { status: 422 });
  return entry;
}

function kept() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}
