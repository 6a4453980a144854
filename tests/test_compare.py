"""What may be said of a release's files: recommendations, order and the lack of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hubq import compare
from hubq.nouns import Artifact, Estimate, EvalSet, Measurement, Release

WINDOWS = 40
TEXT = EvalSet("a.txt", None, "all", "text", "0", 0, 10 * WINDOWS, WINDOWS, 512, 0, None, "0", "0")


def release(files: dict[str, tuple[int, float, float]], spread: float = 0.02, **changes) -> Release:
    """`files` maps levels to (size, ln PPL ratio, KLD); window means have a standard deviation of `spread`, shared by half."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, spread, WINDOWS)
    shared -= shared.mean()
    artifacts, rows = [], []
    for level, (size, ratio, kld) in files.items():
        own = rng.normal(0, spread / 2, (2, WINDOWS))
        own -= own.mean(axis=1, keepdims=True)
        means = {"ln_ppl_ratio": ratio + shared + own[0], "kld": kld + shared + own[1]}
        values = {
            name: Estimate(float(each.mean()), float(each.std() / np.sqrt(WINDOWS)), WINDOWS) for name, each in means.items()
        }
        artifacts.append(Artifact(f"gguf:{level}", Path(f"m-{level}.gguf"), size, "0" * 64, size, {}, 0, level))
        rows.append(
            Measurement(f"gguf:{level}", "llama.cpp", values, {name: tuple(each.tolist()) for name, each in means.items()})
        )
    made = Release("o/m", "0" * 40, "LlamaForCausalLM", 1, "o/m-GGUF", {}, tuple(artifacts), tuple(rows), TEXT)
    return replace(made, **changes)


FILES = {"Q8_0": (800, 0.0005, 0.001), "Q5_K_M": (560, 0.004, 0.012), "Q4_K_M": (480, 0.06, 0.05), "Q2_K": (300, 0.4, 0.4)}


def test_the_smallest_file_that_is_shown_to_be_within_the_loss_is_recommended() -> None:
    found = compare.recommended(release(FILES))
    assert found and found.file and found.file.level == "gguf:Q5_K_M"
    assert (found.metric, found.files) == ("ln_ppl_ratio", 4) and found.limit == pytest.approx(np.log(1.02))
    wide = compare.recommended(release(FILES, within=0.10))
    assert wide and wide.file and wide.file.level == "gguf:Q4_K_M"


def test_what_is_not_shown_is_not_recommended() -> None:
    noisy = compare.recommended(release(FILES, spread=0.5))
    assert noisy and noisy.file is None
    near = {"Q8_0": (800, 0.0005, 0.001), "Q5_K_M": (560, 0.0192, 0.012)}  # below the limit, by less than its error
    found = compare.recommended(release(near))
    assert found and found.file and found.file.level == "gguf:Q8_0"


def test_more_files_ask_for_more_evidence() -> None:
    edge = {"Q5_K_M": (560, 0.0198 - 0.0082, 0.012)}
    alone = compare.recommended(release(edge))
    assert alone and alone.file
    among = compare.recommended(release({**{f"X{i}": (900 + i, 0.4, 0.3) for i in range(12)}, **edge}))
    assert among and among.file is None


def test_where_measuring_stopped_by_itself_the_sequence_decides() -> None:
    edge = {"Q5_K_M": (560, 0.0198 - 0.008, 0.012)}
    fixed, stopped = release(edge), release(edge, evalset=replace(TEXT, precision=0.005))
    assert compare.recommended(fixed).file and compare.recommended(stopped).file is None


def test_without_measurements_nothing_is_said() -> None:
    bare = release(FILES, measurements=(), evalset=None)
    assert compare.recommended(bare) is None and compare.alike(bare) == [] and compare.pareto(bare) == set()


def test_files_that_the_text_does_not_tell_apart_have_no_order() -> None:
    close = {"Q5_K_M": (560, 0.004, 0.0120), "Q5_K_S": (550, 0.004, 0.0125), "Q4_K_M": (480, 0.06, 0.05)}
    assert compare.alike(release(close)) == [("gguf:Q5_K_M", "gguf:Q5_K_S")]
    assert compare.alike(release(close, spread=0.0001)) == []


def test_files_of_different_numbers_of_windows_are_compared_on_those_that_both_have() -> None:
    made = release({"Q8_0": (800, 0.0, 0.1), "Q4_K_M": (480, 0.1, 0.5)})
    first = made.measurements[0]
    short = replace(first, per_window={name: each[:20] for name, each in first.per_window.items()})
    assert compare.alike(replace(made, measurements=(short, made.measurements[1]))) == []


def test_a_larger_file_that_is_worse_is_not_on_the_line() -> None:
    files = {"Q5_0": (600, 0.03, 0.09), "Q4_K_M": (480, 0.02, 0.05), "Q2_K": (300, 0.4, 0.4)}
    assert compare.pareto(release(files)) == {"gguf:Q4_K_M", "gguf:Q2_K"}
    assert compare.pareto(release({**files, "Q5_0": (600, 0.03, 0.0501)})) == {"gguf:Q5_0", "gguf:Q4_K_M", "gguf:Q2_K"}


def test_the_engine_that_users_run_decides() -> None:
    made = release(FILES)
    other = [
        replace(row, engine="weights", per_window={"ln_ppl_ratio": (9.0, 9.1), "kld": (1.0, 1.1)}) for row in made.measurements
    ]
    assert compare.recommended(replace(made, measurements=(*other, *made.measurements))) == compare.recommended(made)
