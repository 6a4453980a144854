"""ONNX, the format of onnxruntime and transformers.js."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.errors import HubqError, MissingExtra, Unsupported, Usage
from hubq.formats import Expected, Options, Words
from hubq.formats.gguf import probe_text, read_imatrix
from hubq.formats.onnx.levels import LEVELS
from hubq.nouns import Artifact, Cache, Check, Level, Measurement, Release, RepoFile, Snapshot, Source
from hubq.store import joint_sha256, sha256
from hubq.tasks import task_of

if TYPE_CHECKING:
    import numpy as np

    from hubq.calibrate import Activation
    from hubq.checkpoint import StoredTensor
    from hubq.formats.gguf.imatrix import Imatrix
    from hubq.formats.gguf.tensors import Tensor
    from hubq.formats.onnx.quantize import Made

ALIASES: dict[str, str] = {}
RUNTIME = "onnxruntime"
VERSION = 2
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")  # whose versions have a say in the files
EXTRAS = {"genai-int4": ("onnxruntime-genai", "torch", "transformers")}  # and of single levels
FOLDER = "onnx"  # of a repository, where transformers.js and Optimum look
EXTRA = 'pip install "hubq[onnx]"'
WORDS = Words(
    title="ONNX",
    library="transformers.js",
    tags=("onnx", "onnxruntime", "transformers.js", "quantized", "hubq"),
    checked="it was loaded and run by onnxruntime in a process of its own, and what it computes held against the source",
    fallbacks="Fallback tensors have rows that no block divides: they stay in 32 bits.",
)
# ending of a class's name in transformers -> Optimum's name of the task
TASKS = {
    "ForCausalLM": "text-generation-with-past",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "LMHeadModel": "text-generation-with-past",
    "Model": "feature-extraction",
}
DECODER = "text-generation-with-past"


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What is known of a model's files before it is exported; `tensors` are those of its GGUF, which name importances.

    `exported` is Optimum's name of the task, `task` the Hub's.
    """

    exported: str
    task: str
    weights: int
    has_chat_template: bool
    tensors: tuple[Tensor, ...]
    left_out: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decoder(self) -> bool:
        """Whether it is a model of next tokens."""
        return self.exported == DECODER


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written. Sizes are about right: the graph itself is not known before the export."""

    blueprint: Blueprint
    levels: tuple[str, ...]
    imatrix: Imatrix | None
    exporter: str = "optimum"
    target: str = "cpu"

    @property
    def weights(self) -> int:
        """Weights in each level's files."""
        return self.blueprint.weights

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each level's files, about, by the level's full name."""
        return {f"onnx:{name}": round(self.weights * LEVELS[name].bits / 8) for name in self.levels}

    @property
    def weighted(self) -> set[str]:
        """The full names of the levels that an importance matrix has a say in."""
        from hubq.formats.onnx.levels import scheme

        blocks = {f"onnx:{name}" for name in self.levels if scheme(name, self.blueprint.decoder).way == "blocks"}
        return blocks if self.imatrix else set()

    @property
    def scratch(self) -> int:
        """Bytes of disk that building takes besides the files: the exported graph, before and after it is put in order, and
        what it is made in."""
        return 2 * 4 * self.weights + self._environment

    @property
    def options(self) -> str:
        """What the command line says of it besides its levels; the exporter that was found, for who makes it again."""
        return "" if self.exporter == "optimum" else f"--exporter {self.exporter}"

    @property
    def _environment(self) -> int:
        """Bytes of the environment that is to be made; it lies in the work store unless --work-dir moves that."""
        from hubq.formats.onnx.exporters import EXPORTERS

        if not any(intermediate(self, level) for level in self.levels):
            return 0
        chosen = EXPORTERS[self.exporter]
        return 0 if chosen.environment.folder.is_dir() else chosen.size

    @property
    def exact(self) -> bool:
        """Whether sizes are exact: not before the export."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know before it begins."""
        from hubq.formats.onnx.exporters import EXPORTERS

        chosen = EXPORTERS[self.exporter]
        told = [] if self.exporter == "optimum" else [f"{chosen.title} exports the graph"]
        if self._environment:
            where = chosen.environment.folder.parent
            told.append(f"{chosen.title}'s environment is made first: {chosen.size / 1e9:.1f} GB in {where}, some minutes")
        return tuple(told)

    @property
    def task(self) -> str:
        """See Blueprint."""
        return self.blueprint.task

    @property
    def left_out(self) -> tuple[str, ...]:
        """The parts of the source that the files do not hold."""
        return self.blueprint.left_out

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return self.blueprint.has_chat_template


# --- the source ---


def choose_source(snapshot: Snapshot, wanted: str) -> str | None:
    """None: the source is a model in transformers' format. Raises Usage where a file is named."""
    if wanted:
        raise Usage(f"ONNX files are not made of {wanted}", "name a model in transformers' format")
    return None


def check_kind(config: Mapping[str, Any]) -> None:
    """Raises Unsupported for a class of models that is not exported; MissingExtra without onnx."""
    from importlib.util import find_spec

    if missing := [name for name in ("onnx", "onnx_ir", "onnxruntime") if not find_spec(name)]:
        raise MissingExtra(f"ONNX files need {', '.join(missing)}", EXTRA)
    _task(config)


def _task(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["nothing"]
    task = next((task for ending, task in TASKS.items() if str(names[0]).endswith(ending)), None)
    if task is None:
        raise Unsupported(
            f"hubq does not export {str(names[0])[:100]!r} to ONNX", f"it does for classes that end in {', '.join(TASKS)}"
        )
    return task


def draw(repo: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Blueprint:
    """The blueprint of a model in transformers' format, from its small files and its tensors' shapes."""
    from hubq.formats.gguf.arch import family
    from hubq.pooling import lost_steps
    from hubq.tokenize import read_settings

    try:
        tensors = tuple(family(config).tensors(config, stored))
    except HubqError:  # of importances alone: what GGUF does not know may be exported still
        tensors = ()
    tied = bool(config.get("tie_word_embeddings", True)) and "lm_head.weight" in stored
    weights = sum(math.prod(tensor.shape) for name, tensor in stored.items() if not (tied and name == "lm_head.weight"))
    chats = (folder / "chat_template.jinja").is_file() or bool(read_settings(folder).get("chat_template"))
    return Blueprint(_task(config), task_of(config), weights, chats, tensors, lost_steps(folder), config=config)


def plan(blueprint: Blueprint, levels: Sequence[Level], options: Options) -> Plan:
    """What the levels of a model will be. Raises Usage for options that ONNX files do not have, Unsupported where no exporter
    takes the model."""
    from hubq.formats.onnx import genai
    from hubq.formats.onnx.export import choose
    from hubq.formats.onnx.targets import find

    if options.custom or options.split:
        raise Usage("recipes and parts of a size are for GGUF levels", "leave out --tensor-type, --pure, --split-max-size")
    imatrix = options.imatrix
    if imatrix is not None and not blueprint.tensors:
        raise Unsupported("what an importance matrix says of this model is not known", "use --imatrix none")
    if isinstance(imatrix, Expected):
        from hubq.formats.gguf.imatrix import stand_in

        imatrix = stand_in(imatrix, blueprint.tensors, head=True)
    if genai.LEVEL in (level.name for level in levels):
        genai.check(blueprint.config)
    exporter = choose(blueprint.config, blueprint.exported, options.exporter)
    target = options.target or "cpu"
    find(target)
    return Plan(blueprint, tuple(level.name for level in levels), imatrix, exporter, target)


# --- importance matrices, which are those of GGUF ---


def calibrated(plan: Plan) -> list[str]:
    """The checkpoint's tensors whose inputs make the importance matrix."""
    from hubq.formats.gguf.imatrix import weights

    return weights(plan.blueprint.tensors, head=True)


def write_imatrix(plan: Plan, activations: Mapping[str, Activation], path: Path) -> None:
    """Write the importance matrix that the plan expects from what calibrate.collect found."""
    from hubq.formats.gguf.imatrix import write_expected

    assert plan.imatrix
    write_expected(plan.imatrix, plan.blueprint.tensors, activations, path, head=True)


def with_imatrix(plan: Plan, imatrix: Imatrix) -> Plan:
    """The plan with the importance matrix that was computed for it."""
    return replace(plan, imatrix=imatrix)


def _importance(plan: Plan) -> dict[str, np.ndarray]:
    """Module of the model -> how much the error in each column of its weight counts."""
    found = {}
    for tensor in plan.blueprint.tensors if plan.imatrix else ():
        assert plan.imatrix is not None
        rows = plan.imatrix.importance(tensor.name, tensor.shape)
        if rows is not None and len(rows) == 1 and len(tensor.sources) == 1:
            module = "lm_head" if tensor.name in ("output.weight", "token_embd.weight") else tensor.sources[0]
            found[module.removesuffix(".weight")] = rows[0]
    return found


# --- files ---


def versions(plan: Plan) -> dict[str, str]:
    """The packages that make the files."""
    from importlib import metadata

    from hubq.formats.onnx.exporters import EXPORTERS

    chosen = EXPORTERS[plan.exporter]
    names = ["numba", "numpy", "onnx", "onnx-ir", "onnxruntime"]
    names += [name for level in plan.levels for name in EXTRAS.get(level, ())]
    exporter = {chosen.package: chosen.version} if any(intermediate(plan, level) for level in plan.levels) else {}
    return {name: metadata.version(name) for name in names} | exporter


def groups(plan: Plan, level: str) -> dict[str, int]:
    """Nothing: an exported graph does not keep what a tensor belongs to."""
    return {}


def intermediate(plan: Plan, level: str) -> dict[str, Any]:
    """What decides the graph that a level is made of, besides the source; empty where it is made of the source itself."""
    from hubq.formats.onnx.exporters import EXPORTERS
    from hubq.formats.onnx.levels import scheme

    if scheme(level, plan.blueprint.decoder).way == "builder":
        return {}

    return {"exporter": EXPORTERS[plan.exporter].environment.folder.name, "format": VERSION}


def make_intermediate(plan: Plan, source: Source, path: Path, tell: Callable[[str], None]) -> None:
    """Write the graph that all levels are made of, in float32 and normalized, to `path`; external data goes beside it."""
    import tempfile

    from hubq.formats.onnx import graph
    from hubq.formats.onnx.export import export

    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as aside:
        files = [file.path for file in source.files]
        made = export(source.folder, files, plan.blueprint.exported, Path(aside), tell, plan.exporter)
        tell("putting the graph into its normal form")
        model = graph.read(Path(aside) / made.graphs[0].file)
        graph.normalize(model)
        graph.save(model, path)


def build(plan: Plan, source: Source, paths: Mapping[str, Path], progress: Callable[[int, int], None]) -> Iterator[Artifact]:
    """Write the levels in `paths` (full name -> new file), one after another, each tried in a process of its own."""
    importance = _importance(plan)
    for done, (level, path) in enumerate(paths.items()):
        progress(done, len(paths))
        made, folder = _make(source, level.partition(":")[2], path, importance, plan.target)
        files = tuple(RepoFile(file.name, file.stat().st_size, sha256(file)) for file in made.files)
        yield Artifact(
            level=level,
            path=made.files[0],
            size=sum(file.size for file in files),
            sha256=joint_sha256(files),
            weights=plan.weights,
            types=made.types,
            fallbacks=made.fallbacks,
            key="",
            parts=files if len(files) > 1 else (),
            imatrix=plan.imatrix.sha256 if plan.imatrix and level in plan.weighted else None,
            folder=folder,
        )


def _make(source: Source, level: str, path: Path, importance: Mapping[str, np.ndarray], target: str) -> tuple[Made, str]:
    """Write a level, try it in a process of its own, and say which folder of a repository it belongs in."""
    from hubq.formats.onnx import engine, genai
    from hubq.formats.onnx.quantize import Made, quantize

    if level == genai.LEVEL:
        files, types = genai.build(source, path)
        genai.load_test(path)
        return Made(files, types, 0), genai.FOLDER
    assert source.graph
    made = quantize(source.graph, level, path, importance, target)
    engine.load_test(path)
    return made, FOLDER


def file_name(model: str, level: Level) -> str:
    """The name that transformers.js looks for under `onnx/`: model_q4.onnx."""
    from hubq.formats.onnx.levels import file_name

    return file_name(level.name)


def refused(paths: Collection[str], files: Mapping[str, str]) -> list[str]:
    """Nothing: every level has a name of its own, by which it is asked for."""
    return []


def ollama(plan: Plan) -> str:
    """Nothing: Ollama runs no ONNX files."""
    return ""


def beside(plan: Plan, source: Source, release: Release) -> dict[str, bytes]:
    """The small files that a repository of ONNX files needs: config, tokenizer, settings of generation."""
    from hubq.formats.onnx.repository import beside

    return beside(source, release)


# --- running them ---


def engines(source: Source) -> tuple[str, ...]:
    """The engines that can run here."""
    return (RUNTIME,)


def load(artifact: Artifact, source: Source, engine: str, task: str = "text-generation") -> AbstractContextManager[Any]:
    """A file as a function from token ids to logits, or to what else its task is scored by; see engine.load and load_rows."""
    from hubq.formats.onnx.engine import load, load_rows

    return load(artifact.path) if task == "text-generation" else load_rows(artifact.path)


def player(path: Path, count: int) -> AbstractContextManager[Any]:
    """A file to be timed; see engine.player."""
    from hubq.formats.onnx.engine import player

    return player(path, count)


def check(
    artifacts: Sequence[Artifact], source: Source, text: str, measurements: Sequence[Measurement], unmeasured: str = ""
) -> tuple[Check, ...]:
    """The gate; see gate.check."""
    from hubq.formats.onnx.gate import check

    return check(artifacts, source, text, measurements, unmeasured)


def cache(plan: Plan) -> Cache | None:
    """Nothing is known of it: what a runtime computes with depends on the prompt."""
    return None


def command(release: Release, file: Artifact, context: int) -> str:
    """How to run one file, as on its card."""
    from hubq.formats.onnx.repository import usage

    return usage(replace(release, artifacts=(file,)))


def usage(release: Release, level: str = "") -> str:
    """How to run the files, in Markdown: that of what is taken by whoever does not choose."""
    from hubq.formats.onnx.repository import usage

    return usage(release)


__all__ = [
    "ALIASES",
    "LEVELS",
    "PACKAGES",
    "RUNTIME",
    "VERSION",
    "WORDS",
    "Plan",
    "beside",
    "build",
    "cache",
    "calibrated",
    "check",
    "check_kind",
    "choose_source",
    "command",
    "draw",
    "engines",
    "file_name",
    "groups",
    "intermediate",
    "load",
    "make_intermediate",
    "ollama",
    "plan",
    "player",
    "probe_text",
    "read_imatrix",
    "refused",
    "usage",
    "versions",
    "with_imatrix",
    "write_imatrix",
]
