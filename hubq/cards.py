"""A folder of cards: one folder per released model, with its release.json and what follows from that: README.md and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hubq import __version__, card
from hubq.deliver import SUMS
from hubq.disk import write
from hubq.errors import BadSource, HubError, Unsupported, Usage
from hubq.formats import FORMATS, open_format
from hubq.hub.files import check_path
from hubq.nouns import Release
from hubq.record import plain, read_record


@dataclass(frozen=True, slots=True)
class Card:
    """A folder of cards by its name, and what its release.json tells."""

    folder: str
    release: Release


@dataclass(frozen=True, slots=True)
class Found:
    """What `check` found of one file of a card: `current`, `stale`, or `missing`; `note` says more."""

    folder: str
    name: str
    state: str
    note: str = ""


def read_cards(folder: Path) -> list[Card]:
    """The cards of a folder, by name: its folders that hold a release.json. Raises BadSource, naming what cannot be read."""
    if not folder.is_dir():
        raise Usage(f"there is no folder {folder}", "name the folder of cards with --cards")
    paths = [path for path in sorted(folder.iterdir()) if (path / "release.json").is_file() and path.name[0] != "."]
    if not paths:
        raise BadSource(
            f"{folder} holds no card", "a card is a folder with the release.json that `hubq publish` put beside the files"
        )
    try:
        for path in paths:
            check_path(path.name)
    except HubError as error:
        raise BadSource(f"{folder}: {error.message}", "rename the folder") from None
    return [Card(path.name, read_release(path)) for path in paths]


def read_release(path: Path) -> Release:
    """What a folder's release.json (or that file itself) tells. Raises BadSource with its place."""
    file = path / "release.json" if path.is_dir() else path
    if not file.is_file():
        raise Usage(f"there is no {file}", "name a folder that holds a release.json, or the file itself")
    try:
        release = read_record(file.read_bytes())
    except (BadSource, Unsupported) as error:
        raise type(error)(f"{file}: {error.message}", error.hint) from None
    if unknown := formats(release) - FORMATS.keys():
        raise BadSource(f"{file}: hubq knows no format {plain(min(unknown))!r}", "it knows " + " and ".join(FORMATS))
    return release


def rendered(release: Release) -> dict[str, bytes]:
    """What follows from release.json, by file name: README.md and its plots."""
    return {name: data for name, data in card.files(release, card.usage(release)).items() if name != "release.json"}


def check(folder: Path, known: Card) -> list[Found]:
    """Whether the files of a card follow from its release.json, in the order of their names."""
    made = known.release.versions.get("hubq", "")
    note = f"release.json is of hubq {plain(made) or 'unknown'}, and this is {__version__}" if made != __version__ else ""
    return [
        Found(known.folder, name, _state(folder / name, data), note) for name, data in sorted(rendered(known.release).items())
    ]


def render(folder: Path, release: Release) -> list[str]:
    """Write those files of a card that do not follow from its release.json; their names.

    Raises Usage in a folder that was published: its hashes would not be true any more.
    """
    changed = {name: data for name, data in sorted(rendered(release).items()) if _state(folder / name, data) != "current"}
    if changed and (folder / SUMS).exists():
        raise Usage(
            f"{SUMS} in {folder} tells the hashes of what was published",
            "publish it again, or copy release.json into a folder of its own and render that",
        )
    for name, data in changed.items():
        write(folder / name, data)
    return list(changed)


def _state(path: Path, wanted: bytes) -> str:
    if not path.is_file():
        return "missing"
    return "current" if path.read_bytes() == wanted else "stale"


def formats(release: Release) -> set[str]:
    """The formats of a release's files; hubq publishes one in a repository."""
    return {file.level.partition(":")[0] for file in release.artifacts}


def check_record(folder: Path) -> None:
    """Raises Usage where the folder of a manifest holds a README.md that hubq did not write, and would lose."""
    if (folder / "README.md").exists() and not (folder / "release.json").exists():
        raise Usage(f"{folder / 'README.md'} is not hubq's, and the card goes there", "move hubq.toml into a folder of its own")


def beside(folder: Path, name: str, first: str) -> Path:
    """Where the record of a manifest's format lies: that of its `first` one in its `folder`, others in folders beside it."""
    return folder if name == first else folder.with_name(f"{folder.name}-{open_format(name).WORDS.title}")


def keep(folder: Path, releases: Sequence[Release], first: str) -> None:
    """Write the records of what was published by the manifest in `folder`, whose first format is `first`; see beside."""
    for release in releases:
        found = beside(folder, min(formats(release)), first)
        found.mkdir(exist_ok=True)
        for name, data in card.files(release, card.usage(release)).items():
            write(found / name, data)
