"""The "Run it" part of a GGUF card. Files go by their levels as tags, which lead to them, see names.py."""

from __future__ import annotations

import json
import re
import shlex
from urllib.parse import quote

from hubq.formats.gguf import names
from hubq.nouns import Artifact, Release
from hubq.source import HUB_ID
from hubq.tasks import task_of

_CLOSED = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")  # a line break would end a block of code
_LLAMA_CPP = "**llama.cpp**, in the terminal and as a server with a web page"
_PARTS = "Ollama, transformers and vLLM take no model in several files: choose a level that is in one, or join its parts with "
_PARTS += "`llama-gguf-split --merge`."
# Release.card["ollama"] -> what is said of it
_CHAT = {
    "made": "`template` and `params` beside the files tell Ollama how this model's conversations are written, as the Hub would "
    "only guess: they were held against the source's chat template, in conversations without tools.",
    "unchecked": "How Ollama writes this model's conversations was not checked: its template there is guessed.",
}
# classes whose GGUF files transformers reads (GGUF_CONFIG_MAPPING), and vLLM through it -> what transformers calls them there
TRANSFORMERS = {
    "BloomForCausalLM": "bloom",
    "FalconForCausalLM": "falcon",
    "GPT2LMHeadModel": "gpt2",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Lfm2ForCausalLM": "lfm2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "NemotronForCausalLM": "nemotron",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
}


def usage(release: Release, level: str = "") -> str:
    """Markdown that runs a release's files in llama.cpp, Ollama, LM Studio, transformers and vLLM; no heading of its own.

    The file is that of `level` or, where that is none of the release's, that which they take if no tag is given.

    Where `release.target` is no Hub id (`owner/name`), the commands name local files.
    """
    if not release.artifacts:
        return ""
    file = next((file for file in release.artifacts if file.level == level), None) or _first(release)
    blocks = _remote(release, file) if HUB_ID.fullmatch(release.target) else _local(release, file)
    return "\n\n".join(blocks) + "\n"


def command(release: Release, file: Artifact, context: int) -> str:
    """The line that runs one file in llama.cpp, in a context of so many tokens."""
    remote = HUB_ID.fullmatch(release.target)
    model = _remote_model(release, file) if remote else f"-m {shlex.quote(file.path.name)}"
    return _CLOSED.sub(" ", f"{_llama_cpp(release, model)[0]} -c {context}")


def _remote_model(release: Release, file: Artifact) -> str:
    """How llama.cpp is told to fetch a file."""
    if _found_by_tag(release, file):
        return f"-hf {release.target}:{_level(file)}"
    return f"-hf {release.target} --hf-file {shlex.quote(file.path.name)}"


def _first(release: Release) -> Artifact:
    """Q4_K_M, which llama.cpp and Ollama take when no tag is given, else the smallest file."""
    named = [file for file in release.artifacts if _level(file) == "Q4_K_M"]
    return named[0] if named else min(release.artifacts, key=lambda file: file.size)


def _level(file: Artifact) -> str:
    return file.level.partition(":")[2]


def _block(title: str, *lines: str, language: str = "sh") -> str:
    body = "\n".join(_CLOSED.sub(" ", line) for line in lines)
    return f"{title}\n\n```{language}\n{body}\n```"


def _remote(release: Release, file: Artifact) -> list[str]:
    target, name, level = release.target, file.path.name, _level(file)
    tag = level if _found_by_tag(release, file) else name
    ollama = shlex.quote(f"hf.co/{target}:{tag}")
    link = f"lmstudio://open_from_hf?model={target}&file={quote(name)}"
    whole = [] if file.parts else [_block("**Ollama**", f"ollama {'pull' if _embeds(release) else 'run'} {ollama}")]
    return [
        _block(_LLAMA_CPP, *_llama_cpp(release, _remote_model(release, file))),
        *whole,
        *_chat(release, file),
        _block(
            "**LM Studio**, by its command line or by a link", f"lms get https://huggingface.co/{target}@{level}", f"# {link}"
        ),
        *_python(release, file),
        _block("**The file alone**", f"hf download {target} {shlex.quote(name)} --local-dir ."),
        _tags(release),
        *([_PARTS] if file.parts else []),
    ]


def _chat(release: Release, file: Artifact) -> list[str]:
    """What the reader should know of conversations in Ollama."""
    return [_CHAT[found] for found in [str(release.card.get("ollama"))] if found in _CHAT and not file.parts]


def _python(release: Release, file: Artifact) -> list[str]:
    """transformers and vLLM, which take the tokenizer from the source."""
    known = release.architecture in TRANSFORMERS and HUB_ID.fullmatch(release.source)
    if not known or file.parts or not _found_by_tag(release, file):
        return []
    script = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{release.target}", gguf_file={json.dumps(file.path.name)})',
        f'tokenizer = AutoTokenizer.from_pretrained("{release.source}")',
    ]
    serve = f"vllm serve {release.target}:{_level(file)} --tokenizer {release.source}"
    return [
        _block(
            "**transformers** (with `gguf` and `accelerate`), which decodes the weights to floats and so saves no memory",
            *script,
            language="py",
        ),
        _block("**vLLM** (`pip install vllm vllm-gguf-plugin`), which calls its GGUF support experimental", serve),
    ]


def _local(release: Release, file: Artifact) -> list[str]:
    name, modelfile = shlex.quote(file.path.name), shlex.quote(f"FROM ./{file.path.name}")
    create = ["ollama create my-model -f Modelfile", "ollama run my-model"]
    return [
        _block(_LLAMA_CPP, *_llama_cpp(release, f"-m {name}")),
        *([] if file.parts else [_block("**Ollama**", f"echo {modelfile} > Modelfile", *create)]),
        *_chat(release, file),
        _block("**LM Studio**", f"lms import {name}"),
        *([_PARTS] if file.parts else []),
    ]


def _llama_cpp(release: Release, model: str) -> list[str]:
    if _embeds(release):
        return [f'llama-embedding {model} -p "Once upon a time"', f"llama-server {model} --embeddings"]
    return [_cli(release, model), f"llama-server {model}"]


def _embeds(release: Release) -> bool:
    """Whether the model is an encoder, whatever head its source has."""
    return task_of({"architectures": [release.architecture]}) != "text-generation"


def _cli(release: Release, model: str) -> str:
    """A chat, or plain continuation of text where the model has no chat template."""
    return f"llama-cli {model}" if release.card.get("chat_template") else f'llama-completion {model} -p "Once upon a time"'


def _found_by_tag(release: Release, file: Artifact) -> bool:
    """Whether `target:LEVEL` leads to this file and no other."""
    return names.by_llama_cpp([other.path.name for other in release.artifacts], _level(file)) == file.path.name


def _tags(release: Release) -> str:
    """The tags that lead to files."""
    tags = [f"`{_level(file)}`" for file in release.artifacts if _found_by_tag(release, file)]
    return f"The tag behind the colon picks the file: {', '.join(tags)}."
