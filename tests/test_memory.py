"""What fits where."""

from __future__ import annotations

from dataclasses import replace

import releases

from hubq.memory import computing, fits, kept, memory, memory_rows
from hubq.nouns import Artifact, Cache

LLAMA = Cache(full=32 * 2 * 8 * 128, windowed=0, window=0, state=0, context=131072, scratch=128256 + 2 * 4096)


def file(size: int, level: str = "Q4_K_M") -> Artifact:
    return replace(releases.release(level).artifacts[0], size=size)


def test_an_eight_billion_model_takes_what_people_know() -> None:
    """128 KiB of cache for each token; 1 GiB at 8,192 tokens."""
    assert kept(LLAMA, 1) == kept(LLAMA, 256) == 256 * 128 * 1024
    assert kept(LLAMA, 8192) == 2**30
    assert computing(LLAMA, 8192) == 512 * (4 * (128256 + 8192) + 2 * 8192)
    assert memory(5, LLAMA, 8192) == 5 + kept(LLAMA, 8192) + computing(LLAMA, 8192)


def test_a_window_bounds_the_cache() -> None:
    narrow = Cache(full=0, windowed=100, window=1024, state=7, context=32768, scratch=1000)
    assert kept(narrow, 512) == 2 * 100 * 512 + 7
    assert kept(narrow, 32768) == kept(narrow, 2048) == 2 * 100 * 1536 + 7


def test_the_longest_context_that_fits() -> None:
    for size in (4_000_000_000, 4_900_000_000, 7_000_000_000, 15_000_000_000):
        for gigabytes in (4, 8, 16, 24):
            found = fits(file(size), LLAMA, gigabytes)
            assert found == LLAMA.context or memory(size, LLAMA, found + 1024) > 1e9 * gigabytes
            assert found == 0 or memory(size, LLAMA, found) <= 1e9 * gigabytes
            assert found % 1024 == 0
    odd = replace(LLAMA, context=1500)
    assert fits(file(10**9), odd, 4) == 1500 and fits(file(3_550_000_000), odd, 4) == 1024


def test_the_table_ends_where_everything_fits() -> None:
    made = releases.release("Q8_0", "Q4_K_M")
    sizes = {"gguf:Q8_0": 8_500_000_000, "gguf:Q4_K_M": 4_900_000_000}
    made = replace(made, cache=LLAMA, artifacts=tuple(replace(file, size=sizes[file.level]) for file in made.artifacts))
    head, *rows = memory_rows(made)
    assert head == ("File", "4 GB", "8 GB", "16 GB", "24 GB")
    assert rows == [("Q8_0", "–", "–", "54,272", "114,688"), ("Q4_K_M", "–", "20,480", "80,896", "all")]
    small = replace(
        made, artifacts=tuple(replace(file, size=10**8) for file in made.artifacts), cache=replace(LLAMA, context=2048)
    )
    assert memory_rows(small) == [("File", "4 GB"), ("Q8_0", "all"), ("Q4_K_M", "all")]
    assert memory_rows(replace(made, cache=None)) == [] == memory_rows(replace(made, artifacts=()))
