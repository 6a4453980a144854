"""ggml's quantizer of a few positive numbers: the scales and mins of a super-block, where an importance matrix is given.

number = step * code with codes from 0 up to a given top: nine steps are tried, then single codes are changed where that fits
better. search_positive() takes LANES groups of numbers side by side, as [position, lane]; it is ggml's make_qp_quants for
any kernel that holds its numbers so. quantize_positive() does the same for arrays in memory.
"""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, ONE, ZERO, by_lanes, inlined, kernel, lanes, load_lanes, nearest

TINY = np.float32(1e-15)  # numbers that all lie below count as zeros
STEP = np.float32(0.1)
ROUNDS = 5  # over the codes; a lane in which one changes nothing stays as it is
BYTE = np.int32(0xFF)  # ggml holds codes in unsigned bytes, where those of negative numbers wrap around


@inlined
def add_errors(number, weight, inverse, top, first, error):
    """The weighted square error of rounding to multiples of 1 / inverse; codes are held to `top`, or to a byte if `first`."""
    step = lanes()
    for b in range(LANES):
        step[b] = ONE / inverse[b]
        error[b] = ZERO
    for i in range(len(number)):
        for b in range(LANES):
            code = nearest(inverse[b] * number[i, b])
            code = np.int32(code & BYTE) if first else np.int32(min(top, code))
            miss = number[i, b] - step[b] * np.float32(code)
            error[b] += weight[i, b] * miss * miss


@inlined
def search_step(number, weight, top, inverse):
    """The inverse of the best of nine steps around greatest / top; 0 where there is nothing to quantize."""
    greatest, tried, error, best = lanes(), lanes(), lanes(), lanes()
    greatest[:] = ZERO
    for i in range(len(number)):
        for b in range(LANES):
            greatest[b] = max(greatest[b], number[i, b])
    for b in range(LANES):
        inverse[b] = np.float32(top) / greatest[b]
    add_errors(number, weight, inverse, top, True, best)
    for trial in range(-4, 5):
        if trial == 0:
            continue
        for b in range(LANES):
            tried[b] = (STEP * np.float32(trial) + np.float32(top)) / greatest[b]
        add_errors(number, weight, tried, top, False, error)
        for b in range(LANES):
            new, old, new_error, old_error = tried[b], inverse[b], error[b], best[b]
            inverse[b] = new if new_error < old_error else old
            best[b] = new_error if new_error < old_error else old_error
    for b in range(LANES):
        inverse[b] = ZERO if greatest[b] < TINY else inverse[b]


@inlined
def improve_codes(number, weight, top, code, sum_lx, sum_ll):
    """Once over the positions: where another code fits a group better, given all its others, take it and correct the sums."""
    for i in range(len(number)):
        for b in range(LANES):
            w, x, old, lx, ll = weight[i, b], number[i, b], code[i, b], sum_lx[b], sum_ll[b]
            rest_lx = lx - w * x * old
            rest_ll = ll - w * old * old
            whole = np.int32(min(top, nearest(x * rest_ll / rest_lx)))
            new = np.float32(whole)
            new_lx = rest_lx + w * x * new
            new_ll = rest_ll + w * new * new
            better = (rest_lx > ZERO) & (rest_ll > ZERO) & (new != old) & (new_lx * new_lx * ll > lx * lx * new_ll)
            code[i, b] = np.float32(np.int32(whole & BYTE)) if better else old
            sum_lx[b] = new_lx if better else lx
            sum_ll[b] = new_ll if better else ll


@inlined
def search_positive(number, weight, top, code, step):
    """Codes and step of the least weighted square error, as ggml searches it.

    number, weight and code: float32 [size, LANES]; top: int32, the greatest code; step: float32 [LANES].
    """
    inverse, sum_lx, sum_ll = lanes(), lanes(), lanes()
    search_step(number, weight, top, inverse)
    sum_lx[:] = ZERO
    sum_ll[:] = ZERO
    for i in range(len(number)):
        for b in range(LANES):
            whole = np.int32(min(top, nearest(inverse[b] * number[i, b])))
            level = np.float32(whole)
            sum_lx[b] += weight[i, b] * number[i, b] * level
            sum_ll[b] += weight[i, b] * level * level
            code[i, b] = np.float32(np.int32(whole & BYTE))
    for _ in range(ROUNDS):
        improve_codes(number, weight, top, code, sum_lx, sum_ll)
    for b in range(LANES):
        fit = sum_lx[b] / sum_ll[b]
        step[b] = fit if sum_ll[b] > ZERO else ZERO


@kernel
def quantize_positive(numbers, weights, top, codes, steps):
    """number = step * code for each row of `numbers`, none of them NaN, where the error of each counts by its weight.

    numbers, weights: float32 [n, size]; top: int32, the greatest code; codes: uint8 [n, size]; steps: float32 [n].
    """
    size = numbers.shape[1]
    number, weight, code, step = by_lanes(size), by_lanes(size), by_lanes(size), lanes()
    for start in range(0, len(numbers), LANES):
        count = load_lanes(numbers, start, number)
        load_lanes(weights, start, weight)
        search_positive(number, weight, top, code, step)
        for b in range(count):
            steps[start + b] = step[b]
            for i in range(size):
                codes[start + b, i] = np.uint8(code[i, b])
