"""The code books of the IQ types: the few points of a lattice that a group of weights may take, and what lies near them.

A point gives each of 8 (or 4) dimensions one of 3 (or 8) levels. Rounding a group of weights gives levels too; where no point
has these levels, the encoder chooses among the points nearby. Distance is the sum of squared differences of levels, and the
neighbours of a code are all points at the least, the two least or the three least distances from it; that differs per type.

Points: the tables iq2xxs_grid to iq3s_grid of ggml-common.h, which the gguf package carries. Neighbours: iq2xs_init_impl and
iq3xs_init_impl of ggml-quants.c.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import gguf
import numpy as np

# how many distances the neighbours of a code span
DISTANCES = {"IQ1_S": 3, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3}


class Grid(NamedTuple):
    """A code book. Levels count from 0; while searching ggml gives level l the value 2 * l + 1 (IQ1: l - 1 and a shift).

    The code of a group is sum(level[i] * base**i), base being the number of levels: 3 (8 dimensions, 6561 codes) or 8
    (4 dimensions, 4096 codes). The neighbours of code c are neighbours[first[c] : first[c + 1]], nearest first and points at
    one distance in order of their index; a code that belongs to a point has none.
    """

    points: np.ndarray  # int8 [points, dimensions]: levels
    packed: np.ndarray  # int32 [points]: the same in one number, 2 bits a level (4 dimensions: 3 bits), the first level lowest
    index: np.ndarray  # int32 [codes]: the point that has this code, or -1
    first: np.ndarray  # int32 [codes + 1]: where the neighbours of a code begin
    neighbours: np.ndarray  # int32: indices of points


@cache
def grid(type_name: str) -> Grid:
    """The code book of IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS or IQ3_S. Its arrays are shared: do not write to them."""
    if type_name == "IQ1_M":
        return grid("IQ1_S")
    levels, base = _points(type_name)
    count, dimensions = levels.shape
    index = np.full(base**dimensions, -1, np.int32)
    index[levels @ base ** np.arange(dimensions)] = np.arange(count)
    codes = np.flatnonzero(index < 0)
    row, neighbours = _nearest(codes[:, None] // base ** np.arange(dimensions) % base, levels, DISTANCES[type_name])
    first = np.searchsorted(codes[row], np.arange(len(index) + 1))
    bits = 2 if base == 3 else 3
    packed = (levels << bits * np.arange(dimensions)).sum(axis=1)
    return Grid(levels.astype(np.int8), *(array.astype(np.int32) for array in (packed, index, first, neighbours)))


def in_rounds(grid: Grid, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`first` and `neighbours` once more, but a code's last neighbour is repeated until their count is a multiple of `size`."""
    count = np.diff(grid.first)
    room = -(-count // size) * size
    first = np.concatenate([[0], np.cumsum(room)]).astype(np.int32)
    nth = np.minimum(np.arange(first[-1]) - np.repeat(first[:-1], room), np.repeat(count - 1, room))
    return first, grid.neighbours[np.repeat(grid.first[:-1], room) + nth]


def _points(type_name: str) -> tuple[np.ndarray, int]:
    """The levels of every point, int64 [points, dimensions], and how many levels there are."""
    book = getattr(gguf.quants, type_name)
    book.init_grid()
    values = np.array(book.grid_map, np.float32)
    return np.searchsorted(values, book.grid[0, 0]), len(values)


def _nearest(wanted: np.ndarray, levels: np.ndarray, distances: int) -> tuple[np.ndarray, np.ndarray]:
    """Every wanted level vector's neighbours among `levels`: pairs (row of wanted, row of levels), nearest first."""
    a, b = wanted.astype(np.float32), levels.astype(np.float32)
    far = ((a**2).sum(axis=1, keepdims=True) + (b**2).sum(axis=1) - 2 * a @ b.T).astype(np.uint8)  # exact: 0 to 196
    reach = far.min(axis=1, keepdims=True)
    for _ in range(distances - 1):
        reach = np.where(far > reach, far, np.uint8(255)).min(axis=1, keepdims=True)
    row, point = np.nonzero(far <= reach)
    order = np.argsort(256 * row + far[row, point], kind="stable")
    return row[order], point[order]
