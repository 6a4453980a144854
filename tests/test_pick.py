"""Which file `hubq pick` names, by the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import releases

from hubq.formats import parse_levels
from hubq.memory import memory
from hubq.nouns import Cache, Estimate, Measurement, Release
from hubq.pick import Choice, pick
from hubq.plan import Request
from hubq.record import read_record, release_json
from hubq.release import publish
from hubq.store import Store
from hubq.text import TextSpec

CACHE = Cache(full=32 * 2 * 8 * 128, windowed=0, window=0, state=0, context=32768, scratch=128256 + 2 * 4096)
SIZES = {"Q8_0": 8_500_000_000, "Q5_K_M": 5_700_000_000, "Q4_K_M": 4_900_000_000, "Q2_K": 3_200_000_000}
LOSSES = {"Q8_0": (0.001, 0.0001), "Q5_K_M": (0.010, 0.002), "Q4_K_M": (0.014, 0.002), "Q2_K": (0.4, 0.02)}


def made(losses: dict[str, tuple[float, float]] = LOSSES, engine: str = "llama.cpp", **changes: Any) -> Release:
    """A release of files of these sizes, with these losses and errors."""
    found = releases.release(*SIZES, cache=CACHE, **changes)
    rows = [Measurement(f"gguf:{name}", engine, {"kld": Estimate(*loss, 3000)}) for name, loss in losses.items()]
    files = [replace(file, size=SIZES[file.level.removeprefix("gguf:")]) for file in found.artifacts]
    return replace(found, artifacts=tuple(files), measurements=tuple(rows))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "hubq", "pick", *arguments], capture_output=True, text=True, env=environment)


def picked(release: Release, gigabytes: float, context: int | None = None) -> Choice:
    return pick(read_record(release_json(release)), int(1e9 * gigabytes), context)


@pytest.mark.parametrize(
    ("ram", "context", "level"),
    [(24, None, "Q8_0"), (8, None, "Q4_K_M"), (8, 16384, "Q4_K_M"), (8, 32768, "Q2_K"), (4.5, None, "Q2_K")],
)
def test_the_least_loss_of_what_fits(ram: float, context: int | None, level: str) -> None:
    """Q5_K_M and Q4_K_M cannot be told apart, so the smaller one is named where both fit."""
    found, tokens = picked(made(), ram, context), context or 4096
    assert (found.file.level, found.context, found.cached) == (f"gguf:{level}", tokens, True)
    assert found.need == memory(SIZES[level], CACHE, tokens) <= 1e9 * ram
    assert found.command == f'llama-completion -hf me/Tiny-GGUF:{level} -p "Once upon a time" -c {tokens}'
    assert found.metric == "kld" and found.loss and found.loss.value == LOSSES[level][0]


def test_losses_that_differ_clearly_are_told_apart() -> None:
    assert picked(made({**LOSSES, "Q5_K_M": (0.008, 0.002)}), 8).file.level == "gguf:Q5_K_M"


def test_without_numbers_it_is_the_largest_that_fits() -> None:
    found = picked(made({}), 8)
    assert found.file.level == "gguf:Q5_K_M" and found.loss is None and found.metric == ""


def test_other_engines_count_where_users_have_no_numbers() -> None:
    assert picked(made(engine="weights"), 8).file.level == "gguf:Q4_K_M"
    both = made()
    rows = [replace(row, engine="weights", values={"kld": Estimate(0.0, 0.0, 9)}) for row in both.measurements[2:]]
    assert picked(replace(both, measurements=(*both.measurements, *rows)), 24).file.level == "gguf:Q8_0"


def test_more_is_better_of_a_cosine() -> None:
    rows = [
        Measurement(f"gguf:{name}", "llama.cpp", {"cosine": Estimate(1 - loss, error, 99)})
        for name, (loss, error) in LOSSES.items()
    ]
    assert picked(replace(made(), measurements=tuple(rows)), 24).file.level == "gguf:Q8_0"


def test_of_an_older_record_the_files_alone_count(tmp_path: Path) -> None:
    document = json.loads(release_json(made({})))
    del document["cache"]
    (tmp_path / "release.json").write_text(json.dumps(document))
    lines = run(str(tmp_path), "--ram", "5G").stdout.splitlines()
    assert lines[0] == "Q4_K_M: Tiny-Q4_K_M.gguf, 4.9 GB"
    assert lines[1] == "needs 4.9 GB of memory for the file alone: what else it takes is not known"
    assert lines[2] == "measured: nothing, so this is but the largest that fits"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--ram", "2G"), 1, "nothing fits: Q2_K, the smallest, needs 4.02 GB for 4,096 tokens"),
        (("--ram", "8"), 2, "--ram 8: no size"),
        (("--ram", "8G", "--context", "40000"), 2, "--context 40000: the model was trained for 32,768 tokens"),
        (("--ram", "8G", "--context", "0"), 2, "--context"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "release.json").write_bytes(release_json(made()))
    told = run(str(tmp_path), *arguments)
    assert told.returncode == code and message in told.stderr and told.stdout == "" and "Traceback" not in told.stderr


def test_a_record_of_others_is_read_with_care(tmp_path: Path) -> None:
    document = json.loads(release_json(made()))
    (tmp_path / "release.json").write_text(json.dumps(document | {"cache": document["cache"] | {"full": -1}}))
    assert "release.json is damaged: cache has a number below zero" in run(str(tmp_path), "--ram", "8G").stderr
    document["files"][0]["level"] = "exl9:4bit"
    (tmp_path / "release.json").write_text(json.dumps(document))
    told = run(str(tmp_path), "--ram", "8G")
    assert told.returncode == 1 and "this hubq knows no format of exl9:4bit" in told.stderr and "Traceback" not in told.stderr


def test_a_folder_that_hubq_did_not_publish(tmp_path: Path) -> None:
    told = run(str(tmp_path), "--ram", "8G")
    assert told.returncode == 1 and "has no release.json" in told.stderr and "hint:" in told.stderr


def test_of_a_release_that_was_published(tiny_llama: Path, topics: Path, tmp_path: Path) -> None:
    text = TextSpec(str(topics), None, windows=8)
    request = Request(str(tiny_llama), parse_levels("q8_0,q4_0"), Store(tmp_path / "work"), to=str(tmp_path / "out"), text=text)
    result = publish(request)
    cache = result.release.cache
    assert cache and (cache.full, cache.context) == (9 * 2 * 2 * 32, 1024)
    where = (Path(result.target).name, "--hub", str(tmp_path / "out"))
    lines = run(*where, "--ram", "1G").stdout.splitlines()
    assert lines[0].startswith("Q8_0: Tiny-Llama-Q8_0.gguf, ") and lines[2].startswith("measured: Mean KLD ")
    assert "with 1,024 tokens of context" in lines[1] and lines[-1].startswith("llama-cli -m Tiny-Llama-Q8_0.gguf -c 1024")
    found = json.loads(run(*where, "--ram", "1G", "--context", "512", "--json").stdout)
    size = (Path(result.target) / "Tiny-Llama-Q8_0.gguf").stat().st_size
    assert (found["file"], found["size"], found["need"]) == ("Tiny-Llama-Q8_0.gguf", size, memory(size, cache, 512))
    assert found["loss"]["count"] > 0 and found["metric"] == "kld" and found["status"] == "ok"
