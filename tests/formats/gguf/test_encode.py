"""Every storage type, bit for bit against ggml, on plain weights and on the blocks that tend to break quantizers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import upstream
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hubq.formats.gguf.decode import decode
from hubq.formats.gguf.encode import TYPES, encode, overflowed, row_bytes

every_type = pytest.mark.parametrize("name", TYPES)
every_way = pytest.mark.parametrize(
    ("name", "matrix"),
    [
        (name, matrix)
        for name, kind in TYPES.items()
        for matrix in (*[None] * bool(kind.encoder), *("squares", "sparse", "equal", "wild") * bool(kind.weighted))
    ],
)
random = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Every test sees the same random numbers, whichever ran before it."""
    random.bit_generator.state = np.random.default_rng(7).bit_generator.state


def ggml_encode(rows: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    return upstream.encode(rows, TYPES[name].number, row_bytes(name, rows.shape[1]), importance)


def assert_same(rows: np.ndarray, name: str, importance: np.ndarray | None = None) -> None:
    assert np.isfinite(rows).all()
    ours, theirs = encode(rows, name, importance=importance), ggml_encode(rows, name, importance)
    wrong = np.flatnonzero((ours != theirs).any(axis=1))
    assert not len(wrong), f"{len(wrong)} of {len(rows)} rows differ, first {wrong[0]}: {rows[wrong[0]]!r}"


def student(*shape: int) -> np.ndarray:
    return (random.standard_t(5, size=shape) * 0.02).astype(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 towards zero, as float32."""
    return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


def powers(low: float, high: float, *shape: int) -> np.ndarray:
    """Random signs, magnitudes from 10**low to 10**high, spread evenly in the exponent."""
    size = 10.0 ** random.uniform(low, high, size=shape)
    return (size * random.choice([-1.0, 1.0], size=shape)).astype(np.float32)


def row_powers(low: float, high: float, rows: int) -> np.ndarray:
    """Ordinary rows at magnitudes from 10**low to 10**high."""
    scale = 10.0 ** np.linspace(low, high, rows)
    return (random.standard_normal((rows, 256)) * scale[:, None]).clip(-3e38, 3e38).astype(np.float32)


def constants() -> np.ndarray:
    values = np.float32(
        [3.4028147e38, 0, -0.0, 1, -1, 0.3, -0.3, 65504, -65520, 1e-6, -1e-6, 1e-15, 9e-16, 1e-39, -1e-45, 3e38, -3e38]
    )
    return np.repeat(values[:, None], 256, axis=1)


def one_outlier() -> np.ndarray:
    rows = student(60, 256)
    rows[np.arange(60), random.integers(0, 256, 60)] = powers(-2, 38, 60)
    return rows


def two_values() -> np.ndarray:
    rows = np.empty((64, 256), np.float32)
    for row in rows:
        row[:] = random.choice(powers(-6, 2, 2), size=256)
    return rows


def neighbours() -> np.ndarray:
    """Blocks whose weights are a few units in the last place apart."""
    base = powers(-4, 1, 64, 1).view(np.uint32)
    return (base + random.integers(0, 5, size=(64, 256), dtype=np.uint32)).view(np.float32)


def some_zero_blocks() -> np.ndarray:
    rows = student(64, 256)
    rows.reshape(-1, 16)[random.random(64 * 16) < 0.5] = 0
    return rows


def signed_zeros() -> np.ndarray:
    rows = np.where(random.random((64, 256)) < 0.5, np.float32(0), np.float32(-0.0))
    rows[32:] = np.where(random.random((32, 256)) < 0.9, rows[32:], np.abs(student(32, 256)))
    return rows


def ties() -> np.ndarray:
    """Weights on and halfway between the levels, extremes of both signs alike."""
    return (random.integers(-64, 65, size=(128, 256)) / np.float32(8)).astype(np.float32)


CASES = {
    "student": lambda: student(256, 512),
    "bf16": lambda: to_bf16(student(256, 256)),
    "f16": lambda: student(128, 256).astype(np.float16).astype(np.float32),
    "uniform": lambda: random.uniform(-1, 1, size=(128, 256)).astype(np.float32),
    "positive": lambda: np.abs(student(128, 256)),
    "negative": lambda: -np.abs(student(128, 256)),
    "negative mixed": lambda: -np.abs(powers(-8, 2, 128, 256)),
    "offset": lambda: student(64, 256) * np.float32(1e-3) + powers(-2, 0, 64, 1),
    "sparse": lambda: student(128, 256) * (random.random((128, 256)) < 0.1).astype(np.float32),
    "constants": constants,
    "some zero blocks": some_zero_blocks,
    "signed zeros": signed_zeros,
    "two values": two_values,
    "neighbours": neighbours,
    "ties": ties,
    "one outlier": one_outlier,
    "mixed magnitudes": lambda: powers(-12, 2, 256, 256),
    "every magnitude": lambda: powers(-44, 38, 256, 256),
    "small spans of magnitude": lambda: np.concatenate([powers(p, p + 3, 16, 256) for p in range(-45, 36, 3)]),
    "denormal": lambda: row_powers(-45, -36, 128),
    "tiny": lambda: row_powers(-36, -10, 256),
    "huge": lambda: row_powers(2, 38, 256),
    "lane tail": lambda: student(1, 256 * 67),
}


# where ggml itself gives up: it aborts the process (type -> cases)
ABORTS: dict[str, tuple[str, ...]] = {
    "IQ1_S": ("constants",),
    "IQ1_M": ("constants", "one outlier", "every magnitude"),
    "IQ2_XXS": ("constants", "small spans of magnitude", "huge"),
    "IQ2_XS": ("one outlier", "every magnitude", "small spans of magnitude", "huge"),
    "IQ2_S": ("one outlier", "every magnitude", "small spans of magnitude", "huge"),
    "IQ3_XXS": ("constants", "one outlier", "every magnitude", "small spans of magnitude", "huge"),
    "IQ3_S": ("constants", "one outlier", "every magnitude", "small spans of magnitude", "huge"),
}


def importance(matrix: str | None, columns: int) -> np.ndarray | None:
    """One number for each column, as a matrix may hold them: mean squares of activations."""
    squares = student(columns) ** 2
    return {
        None: None,
        "squares": squares,
        "sparse": np.where(random.random(columns) < 0.5, squares, np.float32(0)),
        "equal": np.ones(columns, np.float32),
        "wild": abs(powers(-12, 6, columns)),
    }[matrix]


def needed(name: str, columns: int) -> np.ndarray | None:
    """An importance for the types that cannot do without one."""
    return None if TYPES[name].encoder else importance("squares", columns)


@every_way
@pytest.mark.parametrize("case", CASES)
def test_equals_ggml(case: str, name: str, matrix: str | None) -> None:
    if case in ABORTS.get(name, ()):
        return
    rows = np.ascontiguousarray(CASES[case]())
    assert_same(rows, name, importance(matrix, rows.shape[1]))


@every_type
def test_a_matrix_is_left_aside_where_ggml_leaves_it(name: str) -> None:
    if TYPES[name].weighted:
        return
    rows = student(4, 256)
    assert np.array_equal(encode(rows, name, importance=importance("wild", 256)), encode(rows, name))
    assert_same(rows, name, importance("wild", 256))


values = st.floats(width=32, allow_nan=False, allow_infinity=False)
few_values = st.lists(values, min_size=1, max_size=4)
rows_of = st.one_of(
    arrays(np.float32, (1, 256), elements=values),
    arrays(np.float32, (1, 256), elements=st.floats(-1, 1, width=32)),
    few_values.flatmap(lambda few: arrays(np.float32, (1, 256), elements=st.sampled_from(few), fill=st.nothing())),
)


@every_way
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=rows_of)
def test_equals_ggml_on_generated_blocks(name: str, matrix: str | None, rows: np.ndarray) -> None:
    rows = rows.clip(-1e6, 1e6) if name in ABORTS else rows
    assert_same(rows, name, importance(matrix, 256))


@every_way
def test_slices_of_rows_in_threads_give_the_same_bytes(name: str, matrix: str | None) -> None:
    rows, weights = student(37, 512), importance(matrix, 512)
    whole, out = encode(rows, name, importance=weights), np.zeros((37, row_bytes(name, 512)), np.uint8)
    cuts = [0, 1, 8, 20, 37]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda a, b: encode(rows[a:b], name, out[a:b], weights), cuts, cuts[1:]))
    assert np.array_equal(whole, out)


# Root mean square error of the decoded weights over the weights' own: a fifth above what the types give on these weights.
ERRORS = {"Q2_K": 0.4, "Q3_K": 0.21, "Q4_0": 0.13, "Q4_1": 0.11, "Q4_K": 0.1, "Q5_0": 0.065, "Q5_1": 0.053, "Q5_K": 0.05}
ERRORS |= {"Q6_K": 0.026, "Q8_0": 0.008, "BF16": 0.002, "F16": 2.5e-4, "F32": 0.0}
ERRORS |= {"Q1_0": 0.82, "Q2_0": 0.9, "TQ1_0": 1.04, "TQ2_0": 1.04, "MXFP4": 0.15, "IQ1_S": 0.74, "IQ1_M": 0.73}
ERRORS |= {"IQ2_XXS": 0.62, "IQ2_XS": 0.48, "IQ2_S": 0.38}
ERRORS |= {"IQ3_XXS": 0.29, "IQ3_S": 0.225, "IQ4_NL": 0.107, "IQ4_XS": 0.106}


@every_type
def test_decodes_to_nearly_the_same_weights(name: str) -> None:
    rows = student(64, 512)
    decoded = decode(encode(rows, name, importance=needed(name, 512)), name)
    error = np.sqrt(np.mean((decoded - rows) ** 2) / np.mean(rows**2))
    assert error <= ERRORS[name]


@every_type
def test_table_agrees_with_ggml(name: str) -> None:
    kind = TYPES[name]
    assert upstream.type_name(kind.number).upper() == name
    assert (kind.block, kind.bytes) == upstream.block(kind.number)


@every_type
def test_overflowed_names_the_rows_with_an_infinite_scale(name: str) -> None:
    rows = student(9, 512)
    rows[[2, 7], [300, 5]] = np.float32([1, -1]) * (3.4e38 if name == "BF16" else 1e12)
    encoded = encode(rows, name, importance=needed(name, 512))
    broken = np.flatnonzero(~np.isfinite(decode(encoded, name)).all(axis=1)).tolist()
    assert overflowed(encoded, name).tolist() == broken == ([] if name in ("F32", "MXFP4") else [2, 7])


def test_arrays_of_the_wrong_kind_are_refused() -> None:
    rows = student(2, 256)
    for wrong in (rows.astype(np.float64), rows[0], rows[:, ::2]):
        with pytest.raises(ValueError, match="rows must be"):
            encode(wrong, "Q8_0")
    with pytest.raises(ValueError, match="256 weights at a time"):
        encode(rows[:, :128].copy(), "Q4_K")
    with pytest.raises(ValueError, match="out must be"):
        encode(rows, "Q8_0", np.empty((2, 7), np.uint8))
