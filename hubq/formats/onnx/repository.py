"""What a repository of ONNX files holds besides them, and the "Run it" part of its card.

transformers.js looks for config.json and the tokenizer at the root and for graphs under `onnx/`; config.json tells it, under
"transformers.js_config", which precision to take and how many files of external data each graph has.
"""

from __future__ import annotations

import json
from typing import Any

from hubq.formats.onnx import genai
from hubq.formats.onnx.levels import LEVELS
from hubq.nouns import Artifact, Release, Source
from hubq.pooling import lost_steps
from hubq.source import HUB_ID
from hubq.tasks import task_of

# taken over from the source as they are
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
DTYPES = ("fp32", "fp16", "q8", "int8", "uint8", "q4", "q4f16", "bnb4")  # of transformers.js; other files go by their names
# of a model of sentence-transformers, which looks for its steps at the root as well
SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_Pooling/config.json")
PREFERRED = ("q8", "q4", "fp16", "fp32")  # what somebody gets who does not choose
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}  # as transformers.js calls them


def beside(source: Source, release: Release) -> dict[str, bytes]:
    """config.json for all graphs that `release` has, and the source's tokenizer and settings of generation."""
    files = {name: (source.folder / name).read_bytes() for name in COPIED if (source.folder / name).is_file()}
    if not lost_steps(source.folder):  # else it would look for weights that are not there
        found = [path for pattern in SENTENCES for path in source.folder.glob(pattern)]
        files |= {path.relative_to(source.folder).as_posix(): path.read_bytes() for path in found}
    config = dict(source.config) | ({"transformers.js_config": _settings(release)} if _dtypes(release) else {})
    return files | {"config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}


def _settings(release: Release) -> dict[str, Any]:
    external = {file.path.name: len(file.parts) - 1 for file in _dtypes(release) if file.parts}
    name = _name(_first(release))
    return ({"dtype": name} if name in DTYPES else {}) | ({"use_external_data_format": external} if external else {})


def _name(file: Artifact) -> str:
    return file.level.partition(":")[2]


def _dtypes(release: Release) -> list[Artifact]:
    """The files that transformers.js can take."""
    return [file for file in release.artifacts if _name(file) != genai.LEVEL]


def _first(release: Release) -> Artifact:
    """The file that somebody gets who does not choose."""
    by_name = {_name(file): file for file in _dtypes(release)}
    return next(by_name[name] for name in (*PREFERRED, *LEVELS) if name in by_name)


def usage(release: Release) -> str:
    """Markdown that runs a release's files in transformers.js and in Python; no heading of its own."""
    model = release.target if HUB_ID.fullmatch(release.target) else "./folder-of-this-card"
    blocks = _dtype_blocks(release, model) if _dtypes(release) else []
    if len(_dtypes(release)) < len(release.artifacts):
        blocks.append(_genai_block(model))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _genai_block(model: str) -> str:
    fetch = [f"hf download {model} --include '{genai.FOLDER}/*' --local-dir ."] if HUB_ID.fullmatch(model) else []
    script = [
        "import onnxruntime_genai as og",
        f'model = og.Model("{genai.FOLDER}")',
        "tokenizer, settings = og.Tokenizer(model), og.GeneratorParams(model)",
        "settings.set_search_options(max_length=100)",
        "generator = og.Generator(model, settings)",
        'generator.append_tokens(tokenizer.encode("Once upon a time"))',
        "while not generator.is_done():",
        "    generator.generate_next_token()",
        "print(tokenizer.decode(generator.get_sequence(0)))",
    ]
    blocks = [_block("**onnxruntime-genai** (`pip install onnxruntime-genai`)", "sh", fetch)] if fetch else []
    title = "" if fetch else "**onnxruntime-genai** (`pip install onnxruntime-genai`), in the folder of this card"
    return "\n\n".join([*blocks, _block(title, "py", script).strip()])


def _dtype_blocks(release: Release, model: str) -> list[str]:
    file, pooling = _first(release), str(release.card.get("pooling", ""))
    blocks = [_block("**transformers.js** (`npm i @huggingface/transformers`)", "js", _script(release, model, file, pooling))]
    if task_of({"architectures": [release.architecture]}) == "text-generation":
        blocks.append(_block("**Python** (`pip install optimum-onnx[onnxruntime]`)", "py", _optimum(model, file)))
    if pooling and not release.left_out:
        title = "**Sentence Transformers** (`pip install sentence-transformers[onnx]`)"
        blocks.append(_block(title, "py", _sentences(model, file)))
    names = ", ".join(f"`{_name(file)}`" for file in _dtypes(release) if _name(file) in DTYPES)
    others = [f"`{_picked(file)}` picks {file.path.name}." for file in _dtypes(release) if _name(file) not in DTYPES]
    picks = [f"`dtype` picks the file: {names}."] if names else []
    return [*blocks, " ".join([*picks, *others])]


def _script(release: Release, model: str, file: Artifact, pooling: str) -> list[str]:
    task = task_of({"architectures": [release.architecture]})
    options = f', {{ pooling: "{POOLINGS.get(pooling, "mean")}", normalize: true }}' if task == "feature-extraction" else ""
    sample = "Once upon a time" + (" [MASK]" if task == "fill-mask" else "")
    return [
        'import { pipeline } from "@huggingface/transformers";',
        f'const run = await pipeline("{task}", "{model}", {_picked(file)});',
        f'console.log(await run("{sample}"{options}));',
    ]


def _picked(file: Artifact) -> str:
    """What transformers.js is told to take a file."""
    if _name(file) in DTYPES:
        return f'{{ dtype: "{_name(file)}" }}'
    return f'{{ model_file_name: "{file.path.stem}", dtype: "fp32" }}'


def _optimum(model: str, file: Artifact) -> list[str]:
    return [
        "from optimum.onnxruntime import ORTModelForCausalLM",
        f'model = ORTModelForCausalLM.from_pretrained("{model}", subfolder="onnx", file_name="{file.path.name}")',
    ]


def _sentences(model: str, file: Artifact) -> list[str]:
    return [
        "from sentence_transformers import SentenceTransformer",
        f'model = SentenceTransformer("{model}", backend="onnx", model_kwargs={{"file_name": "{file.path.name}"}})',
        'print(model.encode(["Once upon a time"]))',
    ]


def _block(title: str, language: str, lines: list[str]) -> str:
    return f"{title}\n\n```{language}\n" + "\n".join(lines) + "\n```"
