// One model in a thread of its own, so that the page stays quick while it computes. It is asked for one thing at
// a time: to load, to read a text, or for the next token.

import {AutoModelForCausalLM, AutoTokenizer, Tensor, env} from "./vendor/transformers/transformers.min.js";
import {choose, tell} from "./sampling.js";

const THREADS = 4;
const here = (path) => new URL(path, import.meta.url).href;

// Nothing comes from elsewhere; a path, because a whole address would count as elsewhere. The browser's own cache
// of files notices a new site; transformers.js' would not.
Object.assign(env, {
  allowRemoteModels: false, allowLocalModels: true, localModelPath: new URL("models/", import.meta.url).pathname,
  useBrowserCache: false, useWasmCache: false,
});

let tokenizer, model, prefix;
// What the model has read, its memory of it, and its scores for what comes next.
let ids = [], cache = null, scores = null;

const tasks = {
  async load({folder, dtype, device, before}) {
    const wasm = env.backends.onnx.wasm, kind = device === "webgpu" ? ".asyncify" : "";
    const runtime = here(`vendor/onnxruntime-web/ort-wasm-simd-threaded${kind}`);
    wasm.wasmPaths = {mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm`};
    // Threads share memory, which browsers allow where the server isolates the page (COOP and COEP).
    wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency) : 1;
    const progress_callback = ({status, file, loaded, total}) => {
      if (status === "progress" && file.endsWith(".onnx")) postMessage({loaded, total});
    };
    prefix = before;
    [tokenizer, model] = await Promise.all([
      AutoTokenizer.from_pretrained(folder),
      AutoModelForCausalLM.from_pretrained(folder, {dtype, device, progress_callback}),
    ]);
    return {threads: wasm.numThreads};
  },

  // Reads a prompt: its tokens, each but the first with its surprise.
  async read({prompt, context}) {
    const given = [...prefix, ...tokenizer.encode(prompt, {add_special_tokens: false})];
    if (given.length === prefix.length) return {told: []};
    if (given.length >= context) return {tooLong: given.length};
    ids = [], cache = null;
    const rows = await forward(given);
    const told = given.map((id, at) => at ? tell(rows(at - 1), id) : {id, bits: null, top: []});
    return {told: told.slice(prefix.length)};
  },

  // Takes up a text from its tokens, when it continues from another place than the last.
  async resume({made}) {
    const all = [...prefix, ...made];
    if (all.length === ids.length && all.every((id, at) => id === ids[at])) return;
    ids = [], cache = null;
    await forward(all);
  },

  // The next token. The model reads it when the one after it is asked for.
  async next({settings, place, last}) {
    if (last !== null) await forward([last]);
    return choose(scores, new Set(ids), settings, place);
  },
};

async function forward(more) {
  const tensor = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const all = [...ids, ...more];
  const inputs = {input_ids: tensor(more), attention_mask: tensor(all.map(() => 1)), past_key_values: cache};
  const {logits, ...rest} = await model(inputs);
  const old = Object.values(cache ?? {});
  cache = Object.fromEntries(Object.entries(rest).map(([name, value]) => [name.replace("present", "past_key_values"), value]));
  // On a GPU nothing else would free them.
  for (const each of old) each.dispose();
  ids = all;
  const size = logits.dims[2], rows = (at) => logits.data.subarray(at * size, (at + 1) * size);
  scores = rows(more.length - 1);
  return rows;
}

onmessage = async ({data: {call, task, values}}) => {
  try {
    postMessage({call, result: await tasks[task](values)});
  } catch (error) {
    postMessage({call, error: String(error?.message ?? error)});
  }
};
