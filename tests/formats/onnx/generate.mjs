// What transformers.js generates from a folder, as JSON by dtype: node generate.mjs ROOT NAME IDS DTYPE...

import { pathToFileURL } from "node:url";

const [modules, root, name, ids, ...dtypes] = process.argv.slice(2);
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await import(
  pathToFileURL(`${modules}/@huggingface/transformers/dist/transformers.node.mjs`)
);
env.allowRemoteModels = false;
env.localModelPath = root;

const given = JSON.parse(ids);
const row = (numbers) => new Tensor("int64", BigInt64Array.from(numbers.map(BigInt)), [1, numbers.length]);
const found = {};
for (const dtype of dtypes) {
  const own = dtype.includes("_"); // not a dtype of transformers.js: by the name of its file
  const model = await AutoModelForCausalLM.from_pretrained(name, own ? { model_file_name: `model_${dtype}`, dtype: "fp32" } : { dtype });
  const made = await model.generate({
    input_ids: row(given),
    attention_mask: row(given.map(() => 1)),
    max_new_tokens: 8,
    do_sample: false,
  });
  found[dtype] = made.tolist()[0].map(Number);
}
const tokenizer = await AutoTokenizer.from_pretrained(name);
found.tokens = tokenizer.encode("Hello world").map(Number);
console.log(JSON.stringify(found));
