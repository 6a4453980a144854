"""How much memory running a file takes, from its size and its model's cache: as llama.cpp does it unless it is told otherwise.

The cache is in 16 bits, of one conversation, in cells by the 256; that of a window has room for a batch more. Batches are of
512 tokens, computed in 32 bits with flash attention, whose mask has 16 bits for each of them and each cell. The tests hold all
of it against what llama.cpp says that it allocates: the cache is exact, what is computed with an upper bound. The system, and
the program itself, need memory as well.
"""

from __future__ import annotations

from hubq.nouns import Artifact, Cache, Release

NUMBER = 2  # bytes of a number in the cache, and in the mask
COMPUTED = 4  # bytes of a number that is computed
BATCH = 512
CELLS = 256
SIZES = (4, 8, 16, 24)  # GB that people have
STEP = 1024  # tokens that contexts are told in
USUAL = 4096  # tokens of context where nobody says how many


def kept(cache: Cache, context: int) -> int:
    """Bytes of the cache for a context of so many tokens."""
    return NUMBER * (cache.full * _cells(context) + cache.windowed * _narrow(cache, context)) + cache.state


def computing(cache: Cache, context: int) -> int:
    """At most so many bytes are computed with at a time."""
    masks = _cells(context) + (_narrow(cache, context) if cache.window else 0)
    return BATCH * (COMPUTED * cache.scratch + NUMBER * masks)


def memory(size: int, cache: Cache, context: int) -> int:
    """Bytes that a file of `size` bytes takes in all."""
    return size + kept(cache, context) + computing(cache, context)


def fits(file: Artifact, cache: Cache, gigabytes: float) -> int:
    """The longest context for which a file fits into so much memory, at most what the model was trained for; 0 if none does.

    Whole steps of STEP tokens, unless it is that of the training.
    """
    limit = 1e9 * gigabytes
    if memory(file.size, cache, cache.context) <= limit:
        return cache.context
    low, high = 0, -(-cache.context // STEP)  # steps: low are not too many, high are
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory(file.size, cache, STEP * middle) <= limit else (low, middle)
    return STEP * low


def memory_rows(release: Release) -> list[tuple[str, ...]]:
    """The table of what fits where, a head and a row for each file; nothing where the cache is not known.

    It ends with the first size into which all files fit at the whole context.
    """
    cache = release.cache
    if cache is None or not release.artifacts:
        return []
    found = [[fits(file, cache, size) for size in SIZES] for file in release.artifacts]
    whole = [all(row[i] == cache.context for row in found) for i in range(len(SIZES))]
    columns = whole.index(True) + 1 if True in whole else len(SIZES)
    head = ("File", *(f"{size} GB" for size in SIZES[:columns]))
    rows = zip(release.artifacts, found, strict=True)
    return [
        head,
        *((file.level.rpartition(":")[2], *(_told(context, cache) for context in row[:columns])) for file, row in rows),
    ]


def _told(context: int, cache: Cache) -> str:
    return "all" if context == cache.context else f"{context:,}" if context else "–"


def _narrow(cache: Cache, context: int) -> int:
    """Cells for layers that attend to a window."""
    return _cells(min(_cells(context), cache.window + BATCH))


def _cells(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS
