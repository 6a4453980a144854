"""What we say that llama.cpp keeps and computes with is what it says that it allocates."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import pytest
from families import make, variants
from formats.gguf.test_write import build

from hubq.formats.gguf import engine
from hubq.formats.gguf.arch import families
from hubq.formats.gguf.kept import PLAIN, WINDOWED, cache
from hubq.formats.gguf.read import read_header
from hubq.memory import computing, kept
from hubq.nouns import Cache

MIB = 2**20
ARCHITECTURES = {name: kind.gguf for kind in families().values() for name in kind.classes}
VARIANTS = {
    name: variant for name, variant in variants().items() if ARCHITECTURES.get(variant.model) in PLAIN | WINDOWED.keys()
}
# one of each architecture, and what else may matter: windows, latent vectors, experts, wide layers
FIRST = {ARCHITECTURES[variant.model]: name for name, variant in reversed(VARIANTS.items())}
SHOWN = sorted(
    {*FIRST.values(), "cohere-2 by pattern", "gemma-3 by pattern", "gemma-3 without windows", "gemma-2 of 46 layers"}
)
SHOWN += [
    "exaone4-large",
    "olmo-3",
    "bloom-12 heads",
    "llama-mixtral",
    "deepseek-v3",
    "lfm2-adjusted",
    "internlm-2",
    "phi-3 long",
]


@contextmanager
def log() -> Iterator[list[str]]:
    """What llama.cpp says in the meantime."""
    lines: list[str] = []
    listener = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    listen = listener(lambda level, text, _: lines.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(listen, None)
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(engine._listen, None)


def allocated(path: Path, contexts: tuple[int, ...]) -> list[dict[str, list[float]]]:
    """MiB by kind of buffer for each context, with the settings of llama-cli: batches of 512, no more cells than needed."""
    llama_cpp.llama_backend_init()
    found = []
    with log() as lines:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        for context in contexts:
            lines.clear()
            settings = llama_cpp.llama_context_default_params()
            settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.swa_full = context, 2048, 512, False
            llama_cpp.llama_free(llama_cpp.llama_init_from_model(model, settings))
            kinds: dict[str, list[float]] = {"KV": [], "RS": [], "compute": []}
            for kind, size in re.findall(r"(KV|RS|compute) buffer size = +([\d.]+) MiB", "".join(lines)):
                kinds[kind].append(float(size))
            found.append(kinds)
        llama_cpp.llama_model_free(model)
    return found


def check(path: Path, contexts: tuple[int, ...]) -> Cache:
    found = cache(read_header(path).metadata)
    assert found is not None
    for context, said in zip(contexts, allocated(path, contexts), strict=True):
        buffers = [*said["KV"], *said["RS"]]
        assert kept(found, context) / MIB == pytest.approx(sum(buffers), abs=0.0051 * len(buffers))
        (compute,) = said["compute"]
        assert compute <= computing(found, context) / MIB <= 2 * compute, context
    return found


@pytest.mark.parametrize("name", SHOWN)
def test_the_cache_is_exact_and_computing_bounded(name: str, tmp_path: Path) -> None:
    path = build(make(VARIANTS[name], tmp_path / "Tiny"), tmp_path, ["BF16"])["BF16"].path
    found = check(path, (512, 1000, 4096))
    assert bool(found.window) == (found.windowed > 0)


@pytest.mark.parametrize("name", ["gemma-2 of 46 layers", "gemma-3 of 62 layers", "cohere-2", "olmo-3", "exaone4-large"])
def test_the_pattern_of_windows_where_a_file_names_none(name: str, tmp_path: Path) -> None:
    path = build(make(VARIANTS[name], tmp_path / "Tiny"), tmp_path, ["BF16"])["BF16"].path
    data = path.read_bytes()
    path.write_bytes(data.replace(b"sliding_window_pattern", b"sliding_window_unknown"))
    assert check(path, (4096,)).windowed and path.read_bytes() != data


def test_every_architecture_is_shown() -> None:
    assert PLAIN | WINDOWED.keys() == FIRST.keys() | {"internlm2"}  # which transformers has no class for


def test_of_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    path = build(smollm2, tmp_path, ["Q4_0"])["Q4_0"].path
    found = check(path, (512, 8192))
    assert found == Cache(full=30 * 2 * 3 * 64, windowed=0, window=0, state=0, context=8192, scratch=49152 + 2 * 576)


def test_of_others_nothing_is_said(smollm2: Path, tmp_path: Path) -> None:
    metadata = read_header(build(smollm2, tmp_path, ["Q4_0"])["Q4_0"].path).metadata
    assert cache({**metadata, "general.architecture": "mamba"}) is None and cache({}) is None
    assert cache({**metadata, "llama.nextn_predict_layers": 1}) is None
    for broken in ("llama.block_count", "llama.context_length", "llama.attention.head_count"):
        assert cache({key: value for key, value in metadata.items() if key != broken}) is None
        assert all(cache({**metadata, broken: value}) is None for value in ("many", -1, 1.5))
    assert cache({**metadata, "llama.block_count": 2**31}) is None
