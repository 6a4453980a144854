"""GGUF, the format of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.formats.gguf.levels import LEVELS
from hubq.nouns import Artifact, Level, Release, Source

if TYPE_CHECKING:
    from hubq.checkpoint import Checkpoint, StoredTensor
    from hubq.formats.gguf.write import Blueprint, Layout

VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written: the model's blueprint and the layout of each level by its name, sizes included."""

    blueprint: Blueprint
    layouts: Mapping[str, Layout]

    @property
    def weights(self) -> int:
        """Weights in each file."""
        return self.blueprint.weights

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each level's file, exactly, by the level's full name."""
        return {f"gguf:{name}": layout.size for name, layout in self.layouts.items()}

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(self.blueprint.vocab.special.chat_template)


def plan(
    repo: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor], levels: Sequence[Level]
) -> Plan:
    """What the levels of a model will be, from its small files in `folder` and its tensors' shapes.

    Raises Unsupported and BadSource for a model that cannot be converted.
    """
    from hubq.formats.gguf.write import draw, lay_out

    blueprint = draw(repo, folder, config, stored)
    return Plan(blueprint, lay_out(blueprint, [level.name for level in levels]))


def build(
    plan: Plan, checkpoint: Checkpoint, paths: Mapping[str, Path], progress: Callable[[int, int], None]
) -> Iterator[Artifact]:
    """Write the levels in `paths` (full name -> new file) in one pass over the checkpoint; see write.write."""
    from hubq.formats.gguf.write import write

    names = {level.partition(":")[2]: path for level, path in paths.items()}
    return write(plan.blueprint, {name: plan.layouts[name] for name in names}, checkpoint, names, progress)


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


def usage(release: Release) -> str:
    """How to run the files, in Markdown."""
    from hubq.formats.gguf.run_it import usage

    return usage(release)


__all__ = ["LEVELS", "VERSION", "Plan", "build", "engines", "file_name", "load", "plan", "usage"]
