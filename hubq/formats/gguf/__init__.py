"""GGUF, the format of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.formats import Expected, Options, Words
from hubq.formats.gguf.levels import ALIASES, LEVELS
from hubq.nouns import Artifact, Cache, Check, Level, Measurement, Release, Snapshot, Source

if TYPE_CHECKING:
    from hubq.calibrate import Activation
    from hubq.checkpoint import Checkpoint, StoredTensor
    from hubq.formats.gguf.blueprint import Blueprint
    from hubq.formats.gguf.imatrix import Imatrix
    from hubq.formats.gguf.layout import Layout
    from hubq.formats.gguf.origin import Given
    from hubq.formats.gguf.recipe import Custom

RUNTIME = "llama.cpp"
VERSION = 3
PACKAGES = ("gguf",)  # whose versions have a say in the files
EXTRAS: dict[str, tuple[str, ...]] = {}
WORDS = Words(
    title="GGUF",
    library="gguf",
    tags=("gguf", "llama.cpp", "quantized", "hubq"),
    checked="llama.cpp's reading of it was held against transformers' reading of the source",
    fallbacks=(
        "Fallback tensors have rows that are not a multiple of 256 values, so llama.cpp's rules store them in a larger type "
        "than the level's own; that is why bits per weight exceed what the level's name suggests."
    ),
)


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
    def scratch(self) -> int:
        """Bytes of disk that building takes besides the files."""
        return 0

    @property
    def options(self) -> str:
        """What shapes the files besides what the command line says: nothing."""
        return ""

    @property
    def exact(self) -> bool:
        """Whether sizes are exact."""
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know before it begins."""
        return ()

    @property
    def task(self) -> str:
        """See Blueprint."""
        return self.blueprint.task

    @property
    def left_out(self) -> tuple[str, ...]:
        """The modules of the checkpoint that the files do not hold."""
        return self.blueprint.left_out

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return self.blueprint.has_chat_template


def check_kind(config: Mapping[str, Any]) -> None:
    """Raises Unsupported for a kind of model that cannot be converted, from its config alone."""
    from hubq.formats.gguf.arch import family

    family(config)


def draw(repo: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Blueprint:
    """The blueprint of a model in transformers' format; see blueprint.of_checkpoint."""
    from hubq.formats.gguf.blueprint import of_checkpoint

    return of_checkpoint(repo, folder, config, stored)


def choose_source(snapshot: Snapshot, wanted: str) -> str | None:
    """The GGUF of a repository that is the source, or None; see origin.choose."""
    from hubq.formats.gguf.origin import choose

    return choose(snapshot, wanted)


def local_parts(path: Path) -> list[Path]:
    """The files of the model of which a local GGUF is one."""
    from hubq.formats.gguf.read import part_paths, read_header

    return part_paths(read_header(path))


def fetch_source(snapshot: Snapshot, path: str, read: Callable[[str, int, int], bytes], aside: Path) -> Given:
    """What is known of a GGUF before it is pulled; see origin.fetch."""
    from hubq.formats.gguf.origin import fetch

    return fetch(snapshot, path, read, aside)


def draw_source(given: Given, left_out: Sequence[str]) -> Blueprint:
    """The blueprint of a model that is a GGUF; see origin.draw."""
    from hubq.formats.gguf.origin import draw

    return draw(given, left_out)


def towers(snapshot: Snapshot) -> tuple[str, ...]:
    """The vision and audio towers that lie in a repository of GGUF files."""
    from hubq.formats.gguf.origin import is_tower

    return tuple(file.path for file in snapshot.files if file.path.endswith(".gguf") and is_tower(file.path))


def converter(checkout: Path) -> str:
    """What pins the converter of a llama.cpp checkout; see convert.fingerprint."""
    from hubq.formats.gguf.convert import fingerprint

    return fingerprint(checkout)


def converter_files(snapshot: Snapshot) -> tuple[str, ...]:
    """The small files of a model in transformers' format that the converter may read."""
    from hubq.formats.gguf.convert import readable

    return tuple(file.path for file in snapshot.files if readable(file.path))


def converted_source(path: Path, converter: str) -> Given:
    """What is known of a GGUF that a converter made."""
    from hubq.formats.gguf.origin import converted

    return converted(path, converter)


def plan(blueprint: Blueprint, levels: Sequence[Level], options: Options) -> Plan:
    """What the levels of a model will be.

    Where options.imatrix tells of a matrix still to be computed, the plan has the sizes that it will lead to; `with_imatrix`
    completes it. Raises Usage for options that do not fit the model.
    """
    from hubq.formats.gguf.layout import lay_out

    imatrix = options.imatrix
    if isinstance(imatrix, Expected):
        from hubq.formats.gguf.imatrix import stand_in

        imatrix = stand_in(imatrix, blueprint.tensors)
    layouts = lay_out(blueprint, [level.name for level in levels], imatrix, options.custom, options.split)
    return Plan(blueprint, layouts, imatrix, options.custom, options.split)


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
    from hubq.formats.gguf.imatrix import write_expected

    assert plan.imatrix
    write_expected(plan.imatrix, plan.blueprint.tensors, activations, path)


def with_imatrix(plan: Plan, imatrix: Imatrix) -> Plan:
    """The plan with the importance matrix that was computed for it."""
    from hubq.formats.gguf.layout import lay_out

    layouts = lay_out(plan.blueprint, list(plan.layouts), imatrix, plan.custom, plan.split)
    return replace(plan, layouts=layouts, imatrix=imatrix)


def groups(plan: Plan, level: str) -> dict[str, int]:
    """Bytes of a level's tensors by what they belong to; see layout.groups."""
    from hubq.formats.gguf.layout import groups

    return groups(plan.blueprint, plan.layouts[level])


def intermediate(plan: Plan, level: str) -> dict[str, Any]:
    """Nothing: all levels are made of the source itself."""
    return {}


def beside(plan: Plan, source: Source, release: Release) -> dict[str, bytes]:
    """What Ollama needs besides a GGUF, where the Hub does not know it; see chat.files."""
    from hubq.formats.gguf.chat import files

    return files(plan.blueprint.header().metadata)


def ollama(plan: Plan) -> str:
    """What becomes of the chat template in Ollama; see chat.judge."""
    from hubq.formats.gguf.chat import judge

    return judge(plan.blueprint.header().metadata)


def versions(plan: Plan) -> dict[str, str]:
    """The packages that make the files."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("gguf", "numba", "numpy")}


def build(plan: Plan, source: Source, paths: Mapping[str, Path], progress: Callable[[int, int], None]) -> Iterator[Artifact]:
    """Write the levels in `paths` (full name -> new file) in one pass over the source's weights; see write.write."""
    from hubq.checkpoint import open_checkpoint
    from hubq.formats.gguf.write import write

    names = {level.partition(":")[2]: path for level, path in paths.items()}
    layouts = {name: plan.layouts[name] for name in names}
    if source.gguf:
        from hubq.formats.gguf.origin import open_weights

        opened: Checkpoint = open_weights(source.gguf)
    else:
        opened = open_checkpoint(source.folder, [file.path for file in source.files])
    with opened:
        yield from write(plan.blueprint, layouts, opened, names, progress, imatrix=plan.imatrix)


def file_name(model: str, level: Level) -> str:
    """The name that llama.cpp, Ollama, LM Studio and the Hub all parse: Model-Q4_K_M.gguf."""
    return f"{model}-{level.name}.gguf"


def refused(paths: Collection[str], files: Mapping[str, str]) -> list[str]:
    """Which tags would load another file than they name; see names.refused."""
    from hubq.formats.gguf.names import refused

    return refused(paths, files)


def engines(source: Source) -> tuple[str, ...]:
    """The engines that can run here and suit a source: without a checkpoint there is none to decode weights into."""
    from hubq.formats.gguf.engine import available

    return tuple(engine for engine in available() if engine == RUNTIME or source.gguf is None)


def load_source(source: Source) -> AbstractContextManager[Any]:
    """The GGUF that a source is, as a function from token ids to logits."""
    from hubq.formats.gguf.engine import load_source

    return load_source(source)


def tokenize(source: Source, text: str) -> tuple[Any, Any, int | None]:
    """A text in the tokens of the GGUF that a source is; see engine.tokenize."""
    from hubq.formats.gguf.engine import tokenize

    return tokenize(source, text)


def load(artifact: Artifact, source: Source, engine: str, task: str = "text-generation") -> AbstractContextManager[Any]:
    """A file as a function from token ids to logits, or to what else its task is scored by; see engine.load."""
    from hubq.formats.gguf.engine import load

    return load(artifact, source, engine, task)


def probe_text() -> str:
    """A short text to check logits on."""
    from hubq.formats.gguf.probe import PROBE

    return PROBE


def player(path: Path, count: int) -> AbstractContextManager[Any]:
    """A file to be timed; see engine.player."""
    from hubq.formats.gguf.engine import player

    return player(path, count)


def check(
    artifacts: Sequence[Artifact], source: Source, text: str, measurements: Sequence[Measurement], unmeasured: str = ""
) -> tuple[Check, ...]:
    """The parity gate; see gate.check."""
    from hubq.formats.gguf.gate import check

    return check(artifacts, source, text, measurements, unmeasured)


def cache(plan: Plan) -> Cache | None:
    """What llama.cpp keeps and computes with; see kept.cache."""
    from hubq.formats.gguf.kept import cache

    return cache(plan.blueprint.header().metadata)


def command(release: Release, file: Artifact, context: int) -> str:
    """How to run one file in llama.cpp."""
    from hubq.formats.gguf.run_it import command

    return command(release, file, context)


def usage(release: Release, level: str = "") -> str:
    """How to run the files, in Markdown; see run_it.usage."""
    from hubq.formats.gguf.run_it import usage

    return usage(release, level)


__all__ = [
    "ALIASES",
    "LEVELS",
    "RUNTIME",
    "VERSION",
    "Plan",
    "beside",
    "build",
    "cache",
    "calibrated",
    "check",
    "check_kind",
    "choose_source",
    "command",
    "converted_source",
    "converter",
    "converter_files",
    "draw",
    "draw_source",
    "engines",
    "fetch_source",
    "file_name",
    "groups",
    "load",
    "load_source",
    "local_parts",
    "ollama",
    "plan",
    "player",
    "probe_text",
    "read_imatrix",
    "refused",
    "tokenize",
    "towers",
    "usage",
    "with_imatrix",
    "write_imatrix",
]
