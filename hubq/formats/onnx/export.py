"""A model in Hub format becomes ONNX graphs: an exporter makes them in an environment of its own, from a clean folder.

Optimum 2.1 works with transformers 4.57, which cannot live beside hubq's transformers 5: hubq.sealed runs it. What the clean
folder holds is all that it sees: weights, and a config.json in the words of transformers 4.57, without what could load code.
mobius sees config.json as it is, but for that.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubq import sealed
from hubq.checkpoint import AGAIN, INDEX, SINGLE, Checkpoint, few, open_checkpoint
from hubq.errors import BadSource, HubqError, Unsupported, Usage
from hubq.formats.onnx import DECODER
from hubq.formats.onnx.exporters import AUTO, DECODERS, EXPORTERS, ROTARY, YARN, Exporter
from hubq.source import read_config, without_code

TEXT = ("input_ids", "attention_mask")
# task -> file -> inputs and outputs that it must have; a name that ends in a dot stands for all that begin with it
TASKS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "text-generation-with-past": {"model.onnx": ((*TEXT, "past_key_values."), ("logits", "present."))},
    "feature-extraction": {"model.onnx": (TEXT, ("last_hidden_state",))},
    "text-classification": {"model.onnx": (TEXT, ("logits",))},
    "token-classification": {"model.onnx": (TEXT, ("logits",))},
    "fill-mask": {"model.onnx": (TEXT, ("logits",))},
    "text2text-generation-with-past": {
        "encoder_model.onnx": (TEXT, ("last_hidden_state",)),
        "decoder_model_merged.onnx": (
            ("input_ids", "encoder_hidden_states", "encoder_attention_mask", "past_key_values.", "use_cache_branch"),
            ("logits", "present."),
        ),
    },
}

OTHER = "choose a level of another format: `hubq levels`"
CHANGING = {"longrope", "su", "dynamic"}
# settings that say how the weights are stored or who wrote them: Optimum is told the precision of the graph
STORAGE = ("torch_dtype", "dtype", "transformers_version")
# kind of model -> how transformers 4.57 names the base and the share of a rotary embedding, where not as elsewhere
NAMES = {kind: {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"} for kind in ("gpt_neox",)}
# kind of model -> how it names the bases of layers of one type
BASES = {
    kind: {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
    for kind in ("gemma3_text", "gemma3n_text")
}
BASES["modernbert"] = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


@dataclass(frozen=True, slots=True)
class Graph:
    """An exported graph: its file, the files of its external data, the names of its inputs and outputs."""

    file: str
    data: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """What an exporter made: its graphs, its name, and the versions of the packages that had a say."""

    graphs: tuple[Graph, ...]
    exporter: str
    versions: Mapping[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """All files, external data included."""
        return tuple(name for graph in self.graphs for name in (graph.file, *graph.data))


def export(
    folder: Path, files: Iterable[str], task: str, out: Path, tell: Callable[[str], None], exporter: str = "optimum"
) -> Export:
    """Write the graphs of a model to the folder `out`, in float32, under Optimum's names.

    `folder` holds the repository's `files`, config.json and safetensors among them; `task` is one of TASKS; `tell` takes lines
    of progress. The files appear in `out` when all is there and has the names of inputs and outputs that the task asks for.
    Raises Usage for an exporter or a task that is none, BadSource for a damaged source, Unsupported for a kind of model that
    the exporter does not know, HubqError where it fails.
    """
    chosen = _chosen(exporter, task)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as aside:
        clean, made = Path(aside, "model"), Path(aside, "graphs")
        clean.mkdir()
        made.mkdir()
        kind = _put_together(folder, tuple(files), task, clean, exporter)
        answer = sealed.call(chosen.environment, chosen.script, {"task": task, "dtype": "float32"}, clean, made, tell)
        if "unsupported" in answer:
            raise _unsupported(exporter, kind, task, answer["unsupported"])
        if "misfits" in answer:
            raise _misfit(exporter, answer["misfits"])
        graphs = tuple(_checked(answer, name, made, contract) for name, contract in TASKS[task].items())
        exported = Export(graphs, exporter, answer["versions"])
        for name in exported.files:
            os.replace(made / name, out / name)
    return exported


def _chosen(exporter: str, task: str) -> Exporter:
    if task not in TASKS:
        raise Usage(f"ONNX files cannot be made for the task {task!r}", f"choose one of: {', '.join(TASKS)}")
    if exporter not in EXPORTERS:
        raise Usage(f"there is no exporter {exporter!r}", f"choose one of: {', '.join(EXPORTERS)}")
    return EXPORTERS[exporter]


def _misfit(exporter: str, names: list[str]) -> HubqError:
    if exporter == "mobius":  # its definitions of kinds of models are no transformers'
        return Unsupported(f"mobius builds another model than these weights are of: see {few(names)}", OTHER)
    return BadSource(f"the weights do not fit config.json: they lack {few(names)}", AGAIN)


def _unsupported(exporter: str, kind: str, task: str, tasks: list[str]) -> Unsupported:
    known = sorted(set(tasks) & set(TASKS))
    return Unsupported(
        f"{exporter} cannot export a model of type {kind!r} for {task}",
        f"it can for: {', '.join(known)}" if known else OTHER,
    )


def _put_together(folder: Path, files: tuple[str, ...], task: str, clean: Path, exporter: str = "optimum") -> str:
    """Fill the folder that the exporter sees. Returns the model's type."""
    config = read_config((folder / "config.json").read_bytes())
    refuse(config, exporter)
    if exporter == "optimum":
        config = older(config)
    if task == "text-classification" and config.get("pad_token_id") is None:
        config["pad_token_id"] = _padding(folder, files)
    (clean / "config.json").write_text(json.dumps(config, indent=1))
    _put_weights(folder, files, clean, exporter == "mobius")
    return str(config.get("model_type"))


def clean_folder(folder: Path, files: Sequence[str], clean: Path, small: Sequence[str] = ()) -> None:
    """Fill an empty folder with a model as it is, but for what could load code: config.json, weights, and the `small` files."""
    config = read_config((folder / "config.json").read_bytes())
    (clean / "config.json").write_text(json.dumps(config, indent=1))
    for name in set(small) & set(files):
        document = (folder / name).read_bytes()
        if name.endswith("_config.json"):
            document = json.dumps(without_code(json.loads(document)), indent=1).encode()
        (clean / name).write_bytes(document)
    _put_weights(folder, tuple(files), clean, False)


def _put_weights(folder: Path, files: tuple[str, ...], clean: Path, hard: bool) -> None:
    with open_checkpoint(folder, files) as checkpoint:
        if any(tensor.scale for tensor in checkpoint.tensors.values()):
            _decode(checkpoint, clean / SINGLE)
        else:
            for name in {tensor.path for tensor in checkpoint.tensors.values()} | ({INDEX} & set(files)):
                _link(folder / name, clean / name, hard)


def _link(path: Path, link: Path, hard: bool) -> None:
    """Show a file in another folder; `hard` for programs that follow no links out of a folder."""
    try:
        if hard:
            os.link(path.resolve(), link)
        else:
            link.symlink_to(path.absolute())
    except OSError:  # another disk, or Windows, which may not allow it
        shutil.copyfile(path, link)


def _decode(checkpoint: Checkpoint, path: Path) -> None:
    """Write all tensors as float32 into one safetensors file: transformers 4.57 would not apply the scales of 8-bit floats."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in checkpoint.tensors.items():
        start, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}
    packed = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(packed)) + packed)
        for name in checkpoint.tensors:
            file.write(checkpoint.read(name).astype("<f4").tobytes())
            checkpoint.release(name)


def _padding(folder: Path, files: tuple[str, ...]) -> int:
    """The id of the padding token, which says where a text ends for a model that judges its last token."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        token = settings["pad_token"]
        text = token["content"] if isinstance(token, dict) else token
        vocabulary = json.loads((folder / "tokenizer.json").read_bytes())
        ids = {added["content"]: added["id"] for added in vocabulary["added_tokens"]}
        return int(ids[text])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadSource(
            "neither config.json nor the tokenizer names a padding token", "a model that classifies texts needs one"
        ) from None


def _checked(answer: Mapping[str, Any], name: str, folder: Path, contract: tuple[tuple[str, ...], tuple[str, ...]]) -> Graph:
    """A graph of the answer, held against what is in the folder and what the task asks for."""
    found = next((graph for graph in answer["graphs"] if graph["file"] == name), None)
    if found is None or not (folder / name).is_file():
        raise HubqError(f"the exporter did not write {name}", sealed.REPORT)
    for data, size in found["data"].items():
        if Path(data).name != data or not (folder / data).is_file() or (folder / data).stat().st_size < size:
            raise HubqError(f"{name} needs {data!r}, which the exporter did not write in full", sealed.REPORT)
    for wanted, names in zip(contract, (found["inputs"], found["outputs"]), strict=True):
        if missing := [want for want in wanted if not any(_is(name, want) for name in names)]:
            raise HubqError(f"{name} lacks inputs or outputs: {', '.join(missing)}", sealed.REPORT)
    return Graph(name, tuple(found["data"]), tuple(found["inputs"]), tuple(found["outputs"]))


def _is(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith(".") else name == wanted


def older(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json in the words of transformers 4.57, which knows no rope_parameters.

    The base of a rotary embedding, its share of a head and its scaling were settings side by side, and layers of two types had
    two bases. Raises Unsupported where two types of layers differ in more than the base, or in an order that it cannot tell.
    """
    kind = str(config.get("model_type"))
    told: dict[str, Any] = {
        name: older(value) if isinstance(value, Mapping) else value for name, value in config.items() if name not in STORAGE
    }
    if kind == "modernbert" and "layer_types" in told:
        told["global_attn_every_n_layers"] = _every(told.pop("layer_types"))
    rope = told.pop("rope_parameters", None)
    if not isinstance(rope, dict) or not rope:
        return told
    if any(isinstance(value, dict) for value in rope.values()):
        rope, bases = _by_layer_type(kind, rope)
        told |= bases
    names = NAMES.get(kind, {})
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            told[names.get(name, name)] = rope[name]
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    told["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return told


def choose(config: Mapping[str, Any], task: str, wanted: str = AUTO) -> str:
    """The exporter of a model, known from its config alone: the one `wanted`, or the first that takes it.

    Raises Usage for one that is none, and Unsupported for a model that it does not take: where none does, in the words of the
    first, or of the one that knows its kind.
    """
    if wanted != AUTO:
        _chosen(wanted, task)
        _check_kind(config, task, wanted)
        refuse(config, wanted)
        return wanted
    kind = str(config.get("model_type"))
    name = next((name for name in EXPORTERS if _knows(name, kind, task)), None)
    if name is None:
        raise Unsupported(f"no exporter takes a decoder of type {kind[:100]!r} to ONNX", OTHER)
    refuse(config, name)
    return name


def _knows(exporter: str, kind: str, task: str) -> bool:
    """Whether an exporter takes such models; those that are no decoders are Optimum's, which says itself what it takes."""
    return kind in DECODERS[exporter] if task == DECODER else exporter == "optimum"


def _check_kind(config: Mapping[str, Any], task: str, exporter: str) -> None:
    kind = str(config.get("model_type"))
    if not _knows(exporter, kind, task):
        others = [name for name in EXPORTERS if _knows(name, kind, task)]
        raise Unsupported(
            f"{EXPORTERS[exporter].title} does not export a model of type {kind[:100]!r} for {task}",
            f"take --exporter {others[0]}, or leave it out" if others else OTHER,
        )


def refuse(config: Mapping[str, Any], exporter: str) -> None:
    """Raise Unsupported for settings of config.json that the graphs of an exporter do not follow."""
    told = older(config) if exporter == "optimum" else config
    scaling = told.get("rope_scaling") or told.get("rope_parameters") or {}
    how = scaling.get("rope_type", scaling.get("type", "default"))
    if how in CHANGING or (told.get("model_type") == "phi3" and how != "default"):  # phi3 takes every name for longrope
        raise Unsupported(f"an exported graph cannot follow the rotary embedding {how!r}, which changes with the length", OTHER)
    if exporter == "mobius" and (ignored := _ignored(config, how)):
        raise Unsupported(f"mobius would leave out what config.json says of {ignored}", OTHER)


def _ignored(config: Mapping[str, Any], rotary: str) -> str:
    """The settings of a model that mobius builds it without; empty where there are none."""
    follows = ROTARY | ({"yarn"} if config.get("model_type") in YARN else set())
    found = {
        f"the rotary embedding {rotary!r}": rotary not in follows,
        "sliding windows": _slides(config),
        "clip_qkv": bool(config.get("clip_qkv")),
    }
    return " and ".join(name for name, is_there in found.items() if is_there)


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether there are layers that do not see a whole text, as long as texts may be."""
    window, longest = int(config.get("sliding_window") or 0), int(config.get("max_position_embeddings") or 0)
    if layers := config.get("layer_types"):
        return any(name != "full_attention" for name in layers) and window < longest
    return 0 < window < longest and bool(config.get("use_sliding_window", True))


def _every(layers: Sequence[str]) -> int:
    """Which layers see everything, as transformers 4.57 tells it of ModernBERT: the first of so many."""
    for step in range(1, len(layers) + 1):
        if all((name == "full_attention") == (place % step == 0) for place, name in enumerate(layers)):
            return step
    raise Unsupported("transformers 4.57, which exports, cannot put layers of ModernBERT in such an order", OTHER)


def _by_layer_type(kind: str, rope: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotary embedding of the layers that see everything, without its base, and the bases of all types of layers."""
    names = BASES.get(kind)
    local = rope.get("sliding_attention") or {}
    if names is None or not rope.keys() <= names.keys() or local.get("rope_type", "default") != "default":
        raise Unsupported(
            f"transformers 4.57, which exports, cannot give layers of a {kind!r} rotary embeddings of their own",
            OTHER,
        )
    bases = {names[layers]: its["rope_theta"] for layers, its in rope.items() if its and "rope_theta" in its}
    full = rope.get("full_attention") or {}
    return {name: value for name, value in full.items() if name != "rope_theta"}, bases
