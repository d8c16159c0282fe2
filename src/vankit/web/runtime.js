// onnxruntime-web, from the site itself or from a public address, and the network in it.

const TOLERANCE = 1e-3; // of the largest logit: far more than rounding, far less than what a faulty driver computes

/**
 * @param site what site.json says, and perhaps the `device` to take: webgpu or wasm
 * @returns float32 (3 * height * width) -> {logits, maps}, of the GPU where it computes what it should
 */
export async function open(site) {
  const model = await bytesOf(new URL(site.model.file, import.meta.url), site.model.integrity);
  if (await hasGpu(site)) {
    try {
      return await checked(site, await networkOn("webgpu", site, model));
    } catch (error) {
      console.warn(`WebGPU: ${error.message} The processor computes instead.`);
    }
  }
  return checked(site, await networkOn("wasm", site, model));
}

/** Whether there is one to be preferred: a GPU that is imitated in software takes many times as long as WebAssembly. */
async function hasGpu({ device }) {
  if (device === "wasm") return false;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const imitated = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter; // where older browsers have it
  return Boolean(adapter) && (device === "webgpu" || !imitated);
}

async function networkOn(provider, site, model) {
  const { base, [provider]: files } = site.runtime;
  const at = ({ file, integrity }) => bytesOf(new URL(file, new URL(base, import.meta.url)), integrity);
  const [script, binary] = await Promise.all(files.map(at));
  const runtime = await imported(script);
  runtime.env.wasm.wasmBinary = binary;
  const session = await runtime.InferenceSession.create(new Uint8Array(model), { executionProviders: [provider] });
  return (input) => run(runtime, session, site, input);
}

// What is imported by its address is not checked by every browser: `integrity` of an import map and of modulepreload
// passes in those that do not know it. What is fetched with `integrity` is checked by all, and imported as it came.
// The address stays, as threads start from it, too.
function imported(script) {
  return import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
}

async function bytesOf(address, integrity) {
  try {
    const options = { integrity, cache: "no-cache", credentials: "omit", referrerPolicy: "no-referrer" };
    const response = await fetch(address, options);
    return await response.arrayBuffer();
  } catch {
    throw new Error(`${address.href} cannot be loaded, or is not the file that belongs to this page.`);
  }
}

async function run({ Tensor }, session, { preprocessing }, input) {
  const images = new Tensor("float32", input, [1, ...preprocessing.input_size]);
  const { logits, saliency_map: maps } = await session.run({ images });
  return { logits: logits.data, maps: maps && { values: maps.data, height: maps.dims[2], width: maps.dims[3] } };
}

/** The network, if it gives here what it gave where it was exported; its first run is a slow one anyway. */
async function checked(site, network) {
  const { logits } = await network(pattern(site.preprocessing.input_size));
  const allowed = TOLERANCE * site.check.reduce((most, logit) => Math.max(most, Math.abs(logit)), 1);
  const far = site.check.some((expected, i) => !(Math.abs(logits[i] - expected) <= allowed));
  if (far) throw new Error("The network computes something else here than it should.");
  return network;
}

/** The input that vankit.deploy.web gave it. */
function pattern(size) {
  const count = size.reduce((product, n) => product * n, 1);
  return Float32Array.from({ length: count }, (_, i) => ((i * 7919) % 2003) / 1001 - 1);
}
