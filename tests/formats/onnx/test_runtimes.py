"""Every level in the runtimes that people use: transformers.js under Node, Optimum's ORTModelForCausalLM, and onnxruntime."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from hubq import sealed
from hubq.formats import parse_levels
from hubq.formats.onnx import engine
from hubq.formats.onnx.exporters import OPTIMUM
from hubq.formats.onnx.levels import TABLE, file_name
from hubq.formats.onnx.quantize import quantize
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store

TRANSFORMERS_JS = "4.3.1"
CACHE = Path(__file__).parents[3] / "build" / "transformers.js"
HERE = Path(__file__).parent
IDS = [5, 6, 7, 8]

pytestmark = pytest.mark.timeout(1800)  # the first test may make the environment

GRAPHS = [name for name, row in TABLE.items() if row.decoder.way != "builder"]  # the rest is a runtime of its own


@pytest.fixture(scope="module")
def modules() -> Path:
    """transformers.js and what it needs, installed once; scripts of packages would fetch binaries for GPUs."""
    folder = CACHE / TRANSFORMERS_JS
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            wanted = f"@huggingface/transformers@{TRANSFORMERS_JS}"
            (whole := Path(scratch, "whole")).mkdir()
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(whole), wanted]
            subprocess.run(command, check=True, capture_output=True)
            with contextlib.suppress(OSError):  # another process may have been faster
                whole.rename(folder)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A release with a file of every level, also of those that a decoder would not be published in."""
    work = tmp_path_factory.mktemp("release")
    model = tiny.llama(work / "Tiny-Llama", dtype="float32", initializer_range=0.1, tie_word_embeddings=True)
    (work / "out").mkdir()
    store = Store(work / "store")
    request = Request(str(model), parse_levels("onnx:fp32"), store, to=str(work / "out"))
    publish(request)
    folder = Path(publish(replace(request, levels=parse_levels("onnx:all"))).target)
    plain = folder / "onnx" / "model.onnx"
    for level in (level for level in GRAPHS if not (folder / "onnx" / file_name(level)).exists()):
        quantize(plain, level, folder / "onnx" / file_name(level))
    yield folder


def generated(path: Path) -> list[int]:
    """Eight tokens more, the most probable one each time."""
    ids = list(IDS)
    with engine.load(path) as logits:
        for _ in range(8):
            ids.append(int(np.argmax(logits(np.array([*ids, 0]), len(ids) - 1)[0])))
    return ids


def test_all_runtimes_say_the_same(released: Path, modules: Path) -> None:
    """But for ties of the most probable tokens that 8-bit activations may break otherwise, with the cache and without it."""
    script = ["node", str(HERE / "generate.mjs"), str(modules), f"{released.parent}/", released.name, json.dumps(IDS), *GRAPHS]
    ended = subprocess.run(script, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    in_node = json.loads(ended.stdout)
    files = [file_name(level) for level in GRAPHS]
    request = {"ids": IDS, "files": files}
    in_optimum = sealed.call(OPTIMUM, HERE / "generate.py", request, released, released, lambda line: None)
    for level in GRAPHS:
        assert len(in_node[level]) == len(IDS) + 8 and in_node[level] == in_optimum[file_name(level)], level
    for level in ("fp32", "fp16"):
        assert in_node[level] == generated(released / "onnx" / file_name(level)), level
    assert in_node["tokens"] == tiny_ids(released)


def tiny_ids(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Hello world").ids
