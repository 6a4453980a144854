"""A look at a repository of GGUF files that somebody published: what will surprise those who load them. Read-only.

Of the files only headers are read, by ranges. Where the card names the model that they were made of, its small files say what
tokenizer and chat template they should have.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.gguf import names
from hubq.formats.gguf.facts import TEMPLATE, claimed_level
from hubq.formats.gguf.read import Array, Header, fetch_header
from hubq.formats.gguf.split import parse_part, part_name
from hubq.formats.gguf.vocab import Vocab, read_vocab
from hubq.nouns import Snapshot
from hubq.source import HUB_ID, read_card, read_config, used

# a folder of somebody's machine, in a value of metadata
PATH = re.compile(
    r"(?:^|[\s\"'=:(])(/(?:home|Users|root|mnt|media|tmp|var|opt|data|workspace|content|kaggle|srv)/\S*|[A-Za-z]:\\\S*)"
)
LONGEST = 4096  # characters of a value that is looked through; templates are longer
SENSES = ("vision_config", "audio_config")  # of a config whose model sees or hears


class Reader(Protocol):
    """What an audit needs of a hub."""

    def snapshot(self, repo: str, revision: str | None = None) -> Snapshot: ...

    def read(self, snapshot: Snapshot, path: str, start: int = 0, stop: int | None = None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` is wrong with a file (empty: the repository), and what to do; an error misleads users, a warning may."""

    severity: Literal["error", "warning"]
    file: str
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Base:
    """The model that files were made of, as far as its small files tell; `fault` says why they do not."""

    repo: str
    config: Mapping[str, Any] = field(default_factory=dict)
    vocab: Vocab | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found in a repository at a commit; `headers` counts the files that were read."""

    repo: str
    commit: str
    headers: int
    base: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Case:
    """A repository as the checks see it."""

    snapshot: Snapshot
    card: Mapping[str, Any]
    headers: Mapping[str, Header]
    base: Base | None

    @property
    def paths(self) -> list[str]:
        return [file.path for file in self.snapshot.files]

    @property
    def models(self) -> dict[str, Header]:
        """The headers of whole models, or of their first parts."""
        return {path: self.headers[path] for path in names.models(self.paths) if path in self.headers}


def audit(hub: Reader, repo: str, revision: str | None = None, originals: Reader | None = None) -> Report:
    """Look a repository over; `originals` is where its base model is looked for, if not there.

    Raises HubError where it cannot be read, BadSource where it has no GGUF files.
    """
    snapshot = hub.snapshot(repo, revision)
    paths = [file.path for file in snapshot.files if file.path.endswith(".gguf")]
    if not paths:
        raise BadSource(f"{repo} has no GGUF files", "name a repository that has")
    headers, findings = {}, []
    for path in paths:
        try:
            headers[path] = _header(hub, snapshot, path)
        except BadSource as error:
            findings.append(Finding("error", path, error.message, "upload the file again"))
    card = read_card(hub.read(snapshot, "README.md")) if snapshot.file("README.md") else {}
    case = _Case(snapshot, card, headers, _base(originals or hub, card, headers))
    findings += [finding for check in CHECKS for finding in check(case)]
    return Report(repo, snapshot.commit, len(headers), case.base.repo if case.base else "", tuple(findings))


def _header(hub: Reader, snapshot: Snapshot, path: str) -> Header:
    return fetch_header(Path(path), snapshot.size(path), lambda start, stop: hub.read(snapshot, path, start, stop))


def _base(hub: Reader, card: Mapping[str, Any], headers: Mapping[str, Header]) -> Base | None:
    """The model that the card names as the one that the files were made of."""
    named = card.get("base_model")
    repo = named[0] if isinstance(named, list) and named else named
    if not isinstance(repo, str) or not HUB_ID.fullmatch(repo):
        return None
    size = next((value.count for header in headers.values() if isinstance(value := _tokens(header), Array)), 0)
    try:
        snapshot = hub.snapshot(repo)
        with tempfile.TemporaryDirectory() as folder:
            for path in used(snapshot):
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_bytes(hub.read(snapshot, path))
            config = read_config((Path(folder) / "config.json").read_bytes()) if snapshot.file("config.json") else {}
            return Base(repo, config, *_vocab(Path(folder), size))
    except HubqError as error:
        return Base(repo, fault=error.message)


def _tokens(header: Header) -> Any:
    return header.metadata.get("tokenizer.ggml.tokens")


def _vocab(folder: Path, size: int) -> tuple[Vocab | None, str]:
    try:
        return read_vocab(folder, size), ""
    except (BadSource, Unsupported) as error:
        return None, error.message


# --- checks ---


def _card(case: _Case) -> Iterator[Finding]:
    """The front matter says what the files were made of, and under which terms."""
    if not case.card.get("base_model"):
        yield Finding("error", "README.md", "the card names no base_model", "name the original as base_model: owner/name")
    elif case.base and case.base.fault:
        yield Finding("warning", "README.md", f"the base model was not compared: {case.base.fault}", "check base_model")
    if not case.card.get("license"):
        yield Finding("warning", "README.md", "the card names no license", "take over that of the original")


def _preset(case: _Case) -> Iterator[Finding]:
    if names.PRESET in case.paths:
        yield Finding("error", names.PRESET, "with it llama.cpp takes no model from this repository", "delete it")


def _parts(case: _Case) -> Iterator[Finding]:
    """A model in parts is there as a whole."""
    for path in case.paths:
        folder, _, name = path.rpartition("/")
        if (part := parse_part(name)) is None:
            continue
        there = {other for other in case.paths if other.rpartition("/")[0] == folder}
        wanted = [f"{folder}/{part_name(part.whole, i, part.count)}".lstrip("/") for i in range(part.count)]
        if (missing := [other for other in wanted if other not in there]) and path == min(set(wanted) & there):
            yield Finding("error", path, f"{len(missing)} of its {part.count} parts are missing: {missing[0]}", "upload them")


def _names(case: _Case) -> Iterator[Finding]:
    """Tags lead to the files that bear them."""
    models = names.models(case.paths)
    tags = {path: tag for path in models if (tag := names.label(path))}
    for path in models:
        if path not in tags:
            told = "the Hub finds no level in its name: it is not offered as one, and Ollama cannot name it by a tag"
            yield Finding("warning", path, told, "end the name in one: -Q4_K_M.gguf")
    for path, tag in tags.items():
        for what in names.misleading(case.paths, [(path, tag)]):
            yield Finding("error", path, what, "rename one of the files, or move it to another repository")


def _levels(case: _Case) -> Iterator[Finding]:
    """A file is what its name says."""
    for path, header in case.models.items():
        tag, level = names.label(path), claimed_level(header)
        if tag and level and tag != level and not tag.startswith("UD-") and level in names.KNOWN and tag in names.KNOWN:
            yield Finding("error", path, f"it is called {tag}, and says in its metadata that it is {level}", "rename it")


def _templates(case: _Case) -> Iterator[Finding]:
    """The chat template is there, and is the original's."""
    theirs = case.base.vocab.special.chat_template if case.base and case.base.vocab else None
    for path, header in case.models.items():
        ours = header.metadata.get(TEMPLATE)
        if theirs and not ours:
            yield Finding("error", path, "it has no chat template, and the original has one", "convert it again")
        elif theirs and ours != theirs:
            yield Finding("warning", path, "its chat template is not the original's as it is now", "see which one is right")
    if not theirs and len({header.metadata.get(TEMPLATE) for header in case.models.values()}) > 1:
        yield Finding("warning", "", "the files have different chat templates", "convert them again from one source")


def _tokenizers(case: _Case) -> Iterator[Finding]:
    """The tokenizer splits text as the original's does."""
    theirs = case.base.vocab if case.base else None
    for path, header in case.models.items():
        model, pre = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        if model == "gpt2" and pre in (None, "", "default"):
            told = "it names no pre-tokenizer, and llama.cpp splits text by a rule that few models have"
            yield Finding("error", path, told, "convert it again with a tool of today")
        elif theirs and theirs.model == model and theirs.pre not in ("", "default") and pre != theirs.pre:
            told = f"its pre-tokenizer is {pre!r}, and the original's tokenizer is {theirs.pre!r}"
            yield Finding("error", path, told, "convert it again")
        if theirs and (wrong := _wrong_ids(header, theirs)):
            yield Finding("error", path, f"special tokens are not the original's: {', '.join(wrong)}", "convert it again")


def _wrong_ids(header: Header, theirs: Vocab) -> list[str]:
    found = []
    for name in ("bos", "eos"):
        ours = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        wanted = theirs.special.special_token_ids.get(name)
        if ours is not None and wanted is not None and ours != wanted:
            found.append(f"{name} is {ours} instead of {wanted}")
    return found


def _leaks(case: _Case) -> Iterator[Finding]:
    """No folder of a machine stands in the metadata."""
    for path, header in case.headers.items():
        for key, value in header.metadata.items():
            if isinstance(value, str) and len(value) <= LONGEST and (found := PATH.search(value)):
                yield Finding("warning", path, f"{key} tells a folder: {found[1]}", "remove it with gguf-new-metadata")


def _towers(case: _Case) -> Iterator[Finding]:
    """A model that sees or hears has the part that does it."""
    config = case.base.config if case.base else {}
    if any(config.get(sense) for sense in SENSES) and not any("mmproj" in path for path in case.paths):
        yield Finding("warning", "", "the original sees or hears, and there is no mmproj file here", "convert with --mmproj")


CHECKS: tuple[Callable[[_Case], Iterator[Finding]], ...] = (
    _card,
    _preset,
    _parts,
    _names,
    _levels,
    _templates,
    _tokenizers,
    _leaks,
    _towers,
)
