// What transformers.js makes of an export: `node ask.mjs QUESTIONS.json`, answers as JSON on stdout.
// QUESTIONS: { folder, texts?, dtype?, prompts?, newTokens? }.
import { readFileSync } from "node:fs";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

env.allowRemoteModels = false;
const { folder, texts = [], dtype, prompts = [], newTokens } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const answers = { ids: texts.map((text) => tokenizer.encode(text)), continued: [] };
if (prompts.length) {
  const model = await AutoModelForCausalLM.from_pretrained(folder, { dtype });
  for (const prompt of prompts) {
    const output = await model.generate({ ...tokenizer(prompt), max_new_tokens: newTokens, do_sample: false });
    answers.continued.push(tokenizer.decode(output.tolist()[0], { skip_special_tokens: false }));
  }
}
process.stdout.write(JSON.stringify(answers));
