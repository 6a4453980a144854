"""How much the error of each weight counts in IQ3 and IQ4: its square or, by a matrix, importance * a mixed magnitude."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, ZERO, inlined, kernel

EVERY_COLUMN_ALIKE = np.empty(0, np.float32)  # stands for no importance
ROWS = 8  # sums taken side by side: each must keep the order of its additions, and waits for the one before


@kernel
def mean_squares(x, first, then):
    """The sum of squares of each row of x (float32 [n, size]), multiplied by two factors: float32 [n].

    The first product may overflow where the second would not.
    """
    sigma, sums = np.empty(len(x), np.float32), np.empty(ROWS, np.float32)
    for start in range(0, len(x), ROWS):
        count = min(ROWS, len(x) - start)
        sums[:] = ZERO
        for i in range(x.shape[1]):
            for n in range(count):
                sums[n] += x[start + n, i] * x[start + n, i]
        for n in range(count):
            sigma[start + n] = sums[n] * first * then
    return sigma


@inlined
def weigh(value, sigma, importance, start, count, weight):
    """Weight of the blocks from `start` on, side by side. value, weight: float32 [size, LANES]; the rest as in the searches."""
    if len(importance) == 0:
        for i in range(len(value)):
            for b in range(LANES):
                weight[i, b] = value[i, b] * value[i, b]
        return
    period = len(importance) // len(value)
    weight[:] = ZERO
    for b in range(count):
        first = (start + b) % period * len(value)
        for i in range(len(value)):
            weight[i, b] = importance[first + i]
    for b in range(count):
        spread = sigma[start + b]
        for i in range(len(value)):
            weight[i, b] *= np.sqrt(spread + value[i, b] * value[i, b])
