"""GGUF, the format of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.formats import Expected, Options
from hubq.formats.gguf.levels import ALIASES, LEVELS
from hubq.nouns import Artifact, Check, Level, Measurement, Release, Source

if TYPE_CHECKING:
    from hubq.calibrate import Activation
    from hubq.checkpoint import Checkpoint, StoredTensor
    from hubq.formats.gguf.blueprint import Blueprint
    from hubq.formats.gguf.imatrix import Imatrix
    from hubq.formats.gguf.layout import Layout
    from hubq.formats.gguf.recipe import Custom
    from hubq.formats.gguf.tensors import Tensor

RUNTIME = "llama.cpp"
VERSION = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written: the model's blueprint, and the layout of each level by its name, sizes included.

    `imatrix` weighs errors; as long as its `sha256` is empty it stands for one that is still to be computed. `custom` and
    `split` are those of the options.
    """

    blueprint: Blueprint
    layouts: Mapping[str, Layout]
    imatrix: Imatrix | None
    custom: Custom | None
    split: int | None

    @property
    def weights(self) -> int:
        """Weights in each level's files."""
        return self.blueprint.weights

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each level's files, exactly, by the level's full name."""
        return {f"gguf:{name}": layout.size for name, layout in self.layouts.items()}

    @property
    def weighted(self) -> set[str]:
        """The full names of the levels that an importance matrix has a say in."""
        return {f"gguf:{name}" for name, layout in self.layouts.items() if layout.weighted}

    @property
    def predicts(self) -> bool:
        """Whether it is a model of next tokens, whose predictions can be measured."""
        return self.blueprint.predicts

    @property
    def left_out(self) -> tuple[str, ...]:
        """The modules of the checkpoint that the files do not hold."""
        return self.blueprint.left_out

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(self.blueprint.vocab.special.chat_template)


def check_kind(config: Mapping[str, Any]) -> None:
    """Raises Unsupported for a kind of model that cannot be converted, from its config alone."""
    from hubq.formats.gguf.arch import family

    family(config)


def plan(
    repo: str,
    folder: Path,
    config: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    levels: Sequence[Level],
    options: Options,
) -> Plan:
    """What the levels of a model will be, from its small files in `folder` and its tensors' shapes.

    Where options.imatrix tells of a matrix still to be computed, the plan has the sizes that it will lead to; `with_imatrix`
    completes it. Raises Unsupported and BadSource for a model that cannot be converted, Usage for options that do not fit it.
    """
    from hubq.formats.gguf.blueprint import draw
    from hubq.formats.gguf.layout import lay_out

    blueprint, imatrix = draw(repo, folder, config, stored), options.imatrix
    if isinstance(imatrix, Expected):
        imatrix = _stand_in(imatrix, blueprint.tensors)
    layouts = lay_out(blueprint, [level.name for level in levels], imatrix, options.custom, options.split)
    return Plan(blueprint, layouts, imatrix, options.custom, options.split)


def _stand_in(wanted: Expected, tensors: Sequence[Tensor]) -> Imatrix:
    """An importance matrix with the entries and metadata of one that is still to be computed, all weights alike."""
    import numpy as np

    from hubq.formats.gguf.imatrix import Entry, Imatrix, collected

    entries = {}
    for tensor in filter(collected, tensors):
        experts, columns = tensor.shape[0] if len(tensor.shape) > 2 else 1, tensor.shape[-1]
        entries[tensor.name] = Entry(np.ones((experts, columns), np.float32), np.ones(experts, np.float32))
    return Imatrix(wanted.file, "", wanted.datasets, wanted.chunks, wanted.chunk_size, entries)


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix that llama.cpp or hubq made; see imatrix.read."""
    from hubq.formats.gguf.imatrix import read

    return read(path)


def calibrated(plan: Plan) -> list[str]:
    """The checkpoint's tensors whose inputs make the importance matrix."""
    from hubq.formats.gguf.imatrix import weights

    return weights(plan.blueprint.tensors)


def write_imatrix(plan: Plan, activations: Mapping[str, Activation], path: Path) -> None:
    """Write the importance matrix that the plan expects from what calibrate.collect found."""
    from hubq.formats.gguf.imatrix import from_activations, write

    wanted = plan.imatrix
    assert wanted is not None
    facts = wanted.datasets, wanted.chunks, wanted.chunk_size
    write(from_activations(activations, plan.blueprint.tensors, path.name, *facts), path)


def with_imatrix(plan: Plan, imatrix: Imatrix) -> Plan:
    """The plan with the importance matrix that was computed for it."""
    from hubq.formats.gguf.layout import lay_out

    layouts = lay_out(plan.blueprint, list(plan.layouts), imatrix, plan.custom, plan.split)
    return replace(plan, layouts=layouts, imatrix=imatrix)


def build(
    plan: Plan, checkpoint: Checkpoint, paths: Mapping[str, Path], progress: Callable[[int, int], None]
) -> Iterator[Artifact]:
    """Write the levels in `paths` (full name -> new file) in one pass over the checkpoint; see write.write."""
    from hubq.formats.gguf.write import write

    names = {level.partition(":")[2]: path for level, path in paths.items()}
    layouts = {name: plan.layouts[name] for name in names}
    return write(plan.blueprint, layouts, checkpoint, names, progress, imatrix=plan.imatrix)


def file_name(model: str, level: Level) -> str:
    """The name that llama.cpp, Ollama, LM Studio and the Hub all parse: Model-Q4_K_M.gguf."""
    return f"{model}-{level.name}.gguf"


def engines() -> tuple[str, ...]:
    """The engines that can run here."""
    from hubq.formats.gguf.engine import available

    return available()


def load(artifact: Artifact, source: Source, engine: str) -> AbstractContextManager[Any]:
    """A file as a function from token ids to logits; see engine.load."""
    from hubq.formats.gguf.engine import load

    return load(artifact, source, engine)


def probe_text(source: Source) -> str:
    """A short text to check logits on; empty for a model without."""
    from hubq.formats.gguf.gate import probe_text

    return probe_text(source)


def check(
    artifacts: Sequence[Artifact], source: Source, text: str, measurements: Sequence[Measurement], unmeasured: str = ""
) -> tuple[Check, ...]:
    """The parity gate; see gate.check."""
    from hubq.formats.gguf.gate import check

    return check(artifacts, source, text, measurements, unmeasured)


def usage(release: Release) -> str:
    """How to run the files, in Markdown."""
    from hubq.formats.gguf.run_it import usage

    return usage(release)


__all__ = [
    "ALIASES",
    "LEVELS",
    "RUNTIME",
    "VERSION",
    "Plan",
    "build",
    "calibrated",
    "check",
    "check_kind",
    "engines",
    "file_name",
    "load",
    "plan",
    "probe_text",
    "read_imatrix",
    "usage",
    "with_imatrix",
    "write_imatrix",
]
