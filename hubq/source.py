"""What hubq takes from a model's repository, and how its small files are read: as data, never as code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from hubq.errors import BadSource, Unsupported
from hubq.nouns import Snapshot
from hubq.parse import read_json

COUNTS = re.compile("(layers?|experts)$")  # how settings end that say how often a part is there
SPARE = 1000  # such parts that may have no tensors of their own
FRONT = 200_000  # characters of a card's front matter, evaluation results aside
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner/name, as the Hub allows them

# the files beside the weights that hubq reads; others are never fetched
USED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_Pooling/config.json",
    "model.safetensors.index.json",
    "README.md",
    "LICENSE*",
)
RESULTS = re.compile(r"^model-index:.*\n(?:[ #-].*\n|\n)*", re.MULTILINE)  # the longest part of many cards


def used(snapshot: Snapshot) -> tuple[str, ...]:
    """The paths of the small files that hubq reads from a repository."""
    return tuple(file.path for file in snapshot.files if any(matches(file.path, pattern) for pattern in USED))


def matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)  # a star stands for no slash


def read_config(data: bytes) -> dict[str, Any]:
    """config.json without the keys that could load code, at any depth (see `_loads_code`).

    Code that a model brings (auto_map) is never run: hubq converts only kinds of models that it knows by themselves. Weights
    in 8-bit floats with scales are read as what they stand for, and so the config no longer says that they are. Raises
    BadSource for a file that is no JSON object, Unsupported for a model quantized in another way.
    """
    try:
        config = without_code(read_json(data))
    except (ValueError, RecursionError) as error:
        raise BadSource(f"config.json cannot be read: {error}", "check the model's repository") from None
    if not isinstance(config, dict):
        raise BadSource("config.json is not a table", "check the model's repository")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if method == "fp8":
            return {key: value for key, value in config.items() if key != "quantization_config"}
        raise Unsupported(f"the model is quantized already ({method!r})", "start from the original, unquantized model")
    return config


def check_counts(config: Any, tensors: int) -> None:
    """Hold the numbers of layers and experts, at any depth, against the number of tensors in a checkpoint.

    Libraries build what a config calls for before they look at the weights. Raises BadSource.
    """
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in entries:
        if COUNTS.search(str(key)) and isinstance(value, int | float) and value > tensors + SPARE:
            raise BadSource(f"config.json says {key} {value}, and the checkpoint holds {tensors} tensors", "check config.json")
        check_counts(value, tensors)


def without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_code(v) for k, v in value.items() if not _loads_code(k)}
    return [without_code(item) for item in value] if isinstance(value, list) else value


def _loads_code(key: str) -> bool:
    """Whether a setting can make transformers fetch and run code: the name of an implementation may be a Hub repository."""
    return key.startswith("_") or key.endswith("_implementation") or key in ("trust_remote_code", "auto_map")


def read_card(data: bytes) -> Mapping[str, Any]:
    """The front matter of a model card as plain data, without evaluation results; empty where there is none or it is no YAML.

    Norwegian (no) is a language, not false, and a tab is two spaces, as the gguf package has it.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML without aliases, each of which can double a document, or make it a part of itself."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("there are aliases")
            return super().compose_node(parent, index)

    text = data.decode("utf-8", "replace").lstrip("\ufeff")
    if not text.startswith("---"):
        return {}
    front = RESULTS.sub("", text[3:].partition("\n---")[0]).replace("\t", "  ").replace("- no\n", '- "no"\n')
    if len(front) > FRONT:
        return {}
    try:
        card = yaml.load(front, Loader)
    except Exception:  # of many kinds: a wrong value behind a type tag raises whatever its conversion happens to raise
        return {}
    return card if isinstance(card, dict) else {}
