// Prints the table KNOWN of hubq/formats/gguf/chat.py: SHA-256 prefixes of the chat templates that the Hub maps to Ollama's own.
//
//     npm install --prefix DIR @huggingface/ollama-utils && node bench/ollama_templates.mjs DIR
//
// The package takes the first entry of its table whose first 128 characters agree, so an entry behind it is never found.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const folder = resolve(process.argv[2], "node_modules/@huggingface/ollama-utils");
const { convertGGUFTemplateToOllama } = createRequire(import.meta.url)(folder);
const source = readFileSync(`${folder}/src/chat-template-automap.ts`, "utf8");
const entries = Function(`return ${source.slice(source.indexOf("= [") + 2).replace(/;\s*$/, "")}`)();
const found = entries.filter((entry) => convertGGUFTemplateToOllama({ chat_template: entry.gguf }).gguf === entry.gguf);
const hashes = found.map((entry) => createHash("sha256").update(entry.gguf).digest("hex").slice(0, 12));
const sorted = [...new Set(hashes)].sort();
while (sorted.length) console.log(sorted.splice(0, 9).join(" "));
