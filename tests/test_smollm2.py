"""The real model on real text: if the conversion is right, llama.cpp computes from our file what transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubq import reference, score
from hubq.formats import gguf, parse_levels
from hubq.nouns import RepoFile, Source
from hubq.plan import Request
from hubq.release import publish
from hubq.source import read_config
from hubq.store import Store
from hubq.text import TextSpec, windows

# the text differs from one Python to the next, and these numbers with it
MANUAL_OF_3_11 = "71f2ff5d99bdc1f9c48c5c2353ad138201c5ca1c377e0226857ef8fa89b8bcee"


@pytest.mark.parametrize("count", [6, pytest.param(40, marks=pytest.mark.thorough)])
def test_transformers_and_llama_cpp_agree(smollm2: Path, topics: Path, tmp_path: Path, count: int) -> None:
    (tmp_path / "out").mkdir()
    request = Request(str(smollm2), parse_levels("bf16"), Store(tmp_path / "work"), to=str(tmp_path / "out"))
    artifact = publish(request).release.artifacts[0]
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in smollm2.iterdir())
    source = Source("smollm2", "0" * 40, smollm2, read_config((smollm2 / "config.json").read_bytes()), {}, files)
    text = windows(source, TextSpec(str(topics), None, windows=count, seed=None))
    measured = score.measure(
        text,
        lambda: reference.load(source.config, reference.source_weights(source)),
        {(artifact.level, "llama.cpp"): lambda: gguf.load(artifact, source, "llama.cpp")},
    )
    original, converted = (row.values["ppl"].value for row in measured)
    assert converted == pytest.approx(original, rel=0.005)
    if text.evalset.text_sha256 == MANUAL_OF_3_11:
        assert text.evalset.tokens == 112_955
    if text.evalset.text_sha256 == MANUAL_OF_3_11 and count == 40:
        assert original == pytest.approx(11.61, abs=0.005) and converted == pytest.approx(11.61, abs=0.02)
    print(f"reference {original:.5f}, BF16 in llama.cpp {converted:.5f}")
