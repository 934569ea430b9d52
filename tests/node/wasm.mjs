// One turn of benchmarks/formats.py: `node wasm.mjs GRAPH PROMPT_IDS NEW_TOKENS` loads a graph in
// onnxruntime-web, in one thread, and continues the prompt greedily twice; figures of the second time.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
const [file, ids, newTokens] = process.argv.slice(2);
const bytes = new Uint8Array(readFileSync(file));
const started = performance.now();
const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
const load = (performance.now() - started) / 1000;
const caches = session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values"));
const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

// Of two float16 numbers the bits alone say which is larger, once the sign is taken out of them.
const ordered = (logits) =>
  logits instanceof Uint16Array ? logits.map((bits) => (bits & 0x8000 ? ~bits : bits | 0x8000)) : logits;

async function proceed(prompt, count) {
  const feed = {};
  for (const { name, type, shape } of caches) {
    const none = type === "float16" ? new (globalThis.Float16Array ?? Uint16Array)(0) : new Float32Array(0);
    feed[name] = new ort.Tensor(type, none, [1, shape[1], 0, shape[3]]);
  }
  let [next, past] = [prompt, 0];
  for (let done = 0; done < count; done++) {
    feed.input_ids = int64(next);
    feed.attention_mask = int64(Array(past + next.length).fill(1));
    feed.position_ids = int64(next.map((_, place) => past + place));
    const output = await session.run(feed);
    for (const { name } of caches) feed[name] = output[name.replace("past_key_values", "present")];
    past += next.length;
    const row = ordered(output.logits.data.slice(-output.logits.dims[2]));
    next = [row.reduce((best, value, index) => (value > row[best] ? index : best), 0)];
  }
}

await proceed(JSON.parse(ids), Number(newTokens));
const again = performance.now();
await proceed(JSON.parse(ids), Number(newTokens));
const tokensPerSecond = (1000 * Number(newTokens)) / (performance.now() - again);
console.log(JSON.stringify({ load, tokens_per_second: tokensPerSecond }));
