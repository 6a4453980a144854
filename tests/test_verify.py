"""A release is verified by anybody, and every way in which it can lie is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from hubq.errors import BadSource
from hubq.formats import parse_levels
from hubq.hub import Folder
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store
from hubq.text import TextSpec
from hubq.verify import Report, read_sums, verify

REPO, FILE = "org/Tiny-Llama-GGUF", "Tiny-Llama-Q8_0.gguf"
OPTIONS = "--tensor-type ffn_down=q5_0"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, topics: Path) -> Path:
    """A folder hub with org/Tiny-Llama and a measured release of it, of which one level has a recipe of its own."""
    from hubq.formats.gguf.recipe import Custom, parse_tensor_type

    root = tmp_path_factory.mktemp("hub")
    tiny.llama(root / "org" / "Tiny-Llama")
    request = Request(
        "org/Tiny-Llama",
        parse_levels("q8_0"),
        Store(root / "work"),
        to=str(root / "org"),
        hub=root,
        text=TextSpec(str(topics), None, windows=2),
        command=f"hubq publish {{model}} {{build}} --dataset {topics.name} --text-field text --windows 2 --seed 0",
    )
    publish(request)
    custom = Custom(tensor_types=(parse_tensor_type("ffn_down=q5_0"),))
    publish(
        Request(
            **{name: getattr(request, name) for name in ("model", "store", "to", "hub", "text", "command")},
            levels=parse_levels("q4_0"),
            custom=custom,
            options=OPTIONS,
        )
    )
    sums(root)
    shutil.rmtree(root / "work")
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published / "org", tmp_path / "org")
    return tmp_path


def sums(root: Path) -> None:
    """SHA256SUMS by coreutils."""
    folder = root / REPO
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    names = sorted(path.name for path in folder.iterdir())
    made = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True)
    (folder / "SHA256SUMS").write_bytes(made.stdout)


def look(root: Path, **how: object) -> Report:
    return verify(Folder(root), REPO, **how)


def false(report: Report) -> list[str]:
    return [f"{fact.name} {fact.what}" for fact in report.facts if fact.outcome == "false"]


@pytest.mark.parametrize("remote", [True, False])
def test_a_release_as_it_was_published_is_true(root: Path, remote: bool) -> None:
    report = look(root, remote=remote)
    assert {fact.outcome for fact in report.facts} == {"true"}
    assert not report.failed
    claims = {f"{fact.name} {fact.what}" for fact in report.facts}
    assert f"{FILE} has the SHA-256 of release.json" in claims
    assert f"{FILE} stores its tensors as release.json says" in claims
    assert any(claim.startswith("model.safetensors is what org/Tiny-Llama holds at ") for claim in claims)
    assert "README.md has the SHA-256 of SHA256SUMS" in claims
    assert "README.md follows from release.json" in claims
    assert (f"{FILE} was downloaded whole" in claims) == (not remote)


def flip(root: Path) -> None:
    path = root / REPO / FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_and_sum(root: Path) -> None:
    flip(root)
    sums(root)


def lie(root: Path) -> None:
    """The numbers in the card are better than those in the record."""
    path = root / REPO / "README.md"
    path.write_text(path.read_text().replace("Mean KLD", "Mean KLD (the best)"))
    sums(root)


def forget(root: Path) -> None:
    path = root / REPO / "SHA256SUMS"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "Q8_0" not in line))


def other_recipe(root: Path) -> None:
    path = root / REPO / "release.json"
    record = json.loads(path.read_text())
    next(file for file in record["files"] if file["path"] == FILE)["recipe"]["output.weight"] = "Q4_0"
    path.write_text(json.dumps(record))


def other_source(root: Path) -> None:
    tiny.llama(root / "org" / "Tiny-Llama", seed=1)


LIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other bytes": (flip, f"{FILE} has the SHA-256 of release.json"),
    "other bytes, summed": (flip_and_sum, f"{FILE} has the SHA-256 of release.json"),
    "no file": (lambda root: (root / REPO / FILE).unlink(), f"{FILE} is there"),
    "no sums": (lambda root: (root / REPO / "SHA256SUMS").unlink(), "SHA256SUMS is there"),
    "wrong sums": (lambda root: (root / REPO / "README.md").write_text("hello"), "README.md has the SHA-256 of SHA256SUMS"),
    "sums of no kind": (lambda root: (root / REPO / "SHA256SUMS").write_text("hello\n"), "SHA256SUMS can be read"),
    "sums that lack a file": (forget, "SHA256SUMS names every file of the release"),
    "another recipe": (other_recipe, f"{FILE} stores its tensors as release.json says"),
    "another source": (other_source, "model.safetensors is what org/Tiny-Llama holds at"),
    "another card": (lie, "README.md follows from release.json"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found(root: Path, name: str) -> None:
    plant, claim = LIES[name]
    plant(root)
    report = look(root, remote=True)
    assert report.failed
    assert any(found.startswith(claim) for found in false(report))


def test_without_a_record_nothing_can_be_said(root: Path) -> None:
    (root / REPO / "release.json").unlink()
    with pytest.raises(BadSource, match=r"has no release\.json"):
        look(root)


def test_sums_are_read_as_coreutils_writes_them() -> None:
    assert read_sums(f"{'a' * 64}  one file\n{'b' * 64} *two\n".encode()) == {"one file": "a" * 64, "two": "b" * 64}


def hubq(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hubq", "verify", *arguments], capture_output=True, text=True, check=False)


def test_bytes_and_numbers_are_made_again(root: Path, topics: Path) -> None:
    given = (REPO, "--hub", str(root), "--dataset", str(topics), "--rebuild", "all", "--measure", "--json")
    made = hubq(*given)
    document = json.loads(made.stdout)
    assert (made.returncode, document["verified"]) == (0, True), made.stdout
    found = {(fact["name"], fact["what"]): fact["outcome"] for fact in document["facts"]}
    for level in ("gguf:Q8_0", "gguf:Q4_0"):
        assert found[level, "has the same bytes when it is built again"] == "true"
        assert found[f"{level} llama.cpp", "has the same numbers within their errors"] == "true"


def test_a_folder_is_held_against_a_source_elsewhere(root: Path, published: Path) -> None:
    shutil.rmtree(root / "org" / "Tiny-Llama")
    made = hubq(str(root / REPO), "--hub", str(published), "--remote", "--json")
    assert made.returncode == 0
    assert {fact["outcome"] for fact in json.loads(made.stdout)["facts"]} == {"true"}
    alone = hubq(str(root / REPO), "--remote")
    assert alone.returncode == 0
    assert "not checked  source is there" in alone.stdout


def test_other_bytes_and_numbers_are_found(root: Path, topics: Path) -> None:
    """The record tells of another file with better numbers, and all hashes fit."""
    path = root / REPO / "release.json"
    record = json.loads(path.read_text())
    flip(root)
    digest = subprocess.run(["sha256sum", root / REPO / FILE], capture_output=True, text=True, check=True).stdout.split()[0]
    next(file for file in record["files"] if file["path"] == FILE)["sha256"] = digest
    row = next(row for row in record["measurements"] if (row["level"], row["engine"]) == ("gguf:Q8_0", "llama.cpp"))
    row["metrics"]["kld"]["value"] /= 100
    path.write_text(json.dumps(record))
    sums(root)
    made = hubq(REPO, "--hub", str(root), "--dataset", str(topics), "--rebuild", "q8_0", "--measure", "--remote")
    assert made.returncode == 3
    assert "false        gguf:Q8_0 has the same bytes when it is built again: it is " in made.stdout
    assert "false        gguf:Q8_0 llama.cpp has the same numbers within their errors: kld is" in made.stdout
    assert "true         reference transformers has the same numbers within their errors" in made.stdout


def test_options_of_a_record_that_shape_no_file_go_nowhere(root: Path) -> None:
    path = root / REPO / "release.json"
    record = json.loads(path.read_text())
    for file in record["files"]:
        file["options"] = f"--to {root}/stolen --pure; touch {root}/stolen"
    path.write_text(json.dumps(record))
    made = hubq(REPO, "--hub", str(root), "--rebuild", "q8_0", "--remote")
    assert made.returncode == 3
    assert not (root / "stolen").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rebuild", "q2_k"), "the release has no level q2_k"),
        (("--measure",), "--measure needs to know the levels"),
    ],
)
def test_mistakes_are_told(root: Path, arguments: tuple[str, ...], told: str) -> None:
    made = hubq(REPO, "--hub", str(root), *arguments)
    assert made.returncode == 2
    assert told in made.stderr
    assert "Traceback" not in made.stderr
