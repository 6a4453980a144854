"""The level `genai-int4`: a folder that onnxruntime-genai runs, made by its own builder.

The builder (`python -m onnxruntime_genai.models.builder`) makes the graph from the checkpoint, with attention fused, 4 bits in
blocks of 32 and one tensor for tied embeddings, and writes genai_config.json and the tokenizer beside it. The folder is called
as those that Microsoft publishes: processor, bits, rounding, block and accuracy level.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hubq import sealed
from hubq.errors import HubqError, MissingExtra, Unsupported
from hubq.formats.onnx import engine, graph
from hubq.formats.onnx.export import clean_folder
from hubq.nouns import Source

LEVEL = "genai-int4"
FOLDER = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"
EXTRA = 'pip install "hubq[genai]"'
OTHER = "leave this level out; onnx:q4 takes other models"
# classes in transformers whose graphs were seen to compute what transformers computes, of those that the builder takes
ARCHITECTURES = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
TRIED = 8  # ids that are generated when a folder is tried


def check(config: Mapping[str, Any]) -> None:
    """Raises MissingExtra without onnxruntime-genai, Unsupported for a model that its builder does not take, from config.json
    alone."""
    from importlib.util import find_spec

    if not find_spec("onnxruntime_genai"):
        raise MissingExtra(f"the level onnx:{LEVEL} needs onnxruntime-genai", EXTRA)
    kind = str((config.get("architectures") or ["nothing"])[0])
    if kind not in ARCHITECTURES:
        raise Unsupported(f"hubq does not have onnxruntime-genai build {kind[:100]!r}", OTHER)


def build(source: Source, path: Path) -> tuple[list[Path], dict[str, int]]:
    """Write the folder whose graph is `path`, which lies in a new, empty one; returns its files, the graph first, and how many
    weight matrices have each storage type.

    The builder runs in a process of its own, without network, token, settings of the user or code of the model. Raises
    HubqError with its reason where it fails, Unsupported where what it wrote has not Optimum's names.
    """
    with tempfile.TemporaryDirectory(prefix=".genai-", dir=path.parent.parent) as aside:
        clean, made = Path(aside, "model"), Path(aside, "made")
        clean.mkdir()
        clean_folder(source.folder, [file.path for file in source.files], clean, TOKENIZER)
        options = ["-i", str(clean), "-o", str(made), "-p", "int4", "-e", "cpu", "-c", str(Path(aside, "cache"))]
        sealed.run_module("onnxruntime_genai.models.builder", [*options, "--extra_options", "hf_token=false"])
        return _put_in_order(made, path)


def _put_in_order(made: Path, path: Path) -> tuple[list[Path], dict[str, int]]:
    """Take over what the builder wrote: the graph in hubq's own form, the small files as they are."""
    settings = json.loads((made / "genai_config.json").read_text())
    model = graph.read(made / settings["model"]["decoder"]["filename"])
    _name_sizes(model, int(settings["model"]["decoder"]["head_size"]))
    graph.forget(model)
    graph.check(graph.contract(model))
    types = Counter(f"int{node.attributes['bits'].as_int()}" for node in model.graph if node.op_type == "MatMulNBits")
    files = graph.save(model, path)
    settings["model"]["decoder"]["filename"] = path.name
    (made / "genai_config.json").write_text(json.dumps(settings, indent=4) + "\n")
    for name in sorted(name for name in ("genai_config.json", *TOKENIZER) if (made / name).is_file()):
        os.replace(made / name, path.parent / name)
        _sync(path.parent / name)
        files.append(path.parent / name)
    return files, dict(types)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _name_sizes(model: Any, head_size: int) -> None:
    """The builder leaves the last size of the cache open, and so nobody could make an empty one from the graph alone."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if str(value.name).startswith((graph.PAST, graph.PRESENT)):
            value.shape = type(value.shape)([*list(value.shape)[:3], head_size])


def load_test(path: Path) -> None:
    """Generate with a folder in a fresh process, and hold what comes against onnxruntime alone. Raises HubqError."""
    engine.load_test(path)
    sealed.run_module("hubq.formats.onnx.genai", [str(path.resolve())])


def _try(path: Path) -> None:
    """What the fresh process does."""
    import onnxruntime_genai

    ids = list(range(1, 9))
    model = onnxruntime_genai.Model(str(path.parent))
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + TRIED, do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    if found[: len(ids)] != ids or len(found) == len(ids):
        raise HubqError(f"onnxruntime-genai generates nothing with {path.name}", engine.AGAIN)
    _compare(path, found, len(ids))


def _compare(path: Path, found: Sequence[int], given: int) -> None:
    """Each id that was generated is the likeliest in onnxruntime too, or as likely: kernels round differently."""
    with engine.load(path) as run:
        logits = run(np.array(found), 0)
    for place in range(given, len(found)):
        row = logits[place - 1]
        if row.max() - row[found[place]] > 0.1 * row.std():
            raise HubqError(f"onnxruntime-genai and onnxruntime say different things of {path.name}", engine.AGAIN)


if __name__ == "__main__":
    import sys

    try:
        _try(Path(sys.argv[1]))
    except HubqError as error:
        sys.exit(f"error: {error.message}")
