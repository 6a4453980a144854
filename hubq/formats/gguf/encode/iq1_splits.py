"""The search behind IQ1_S and IQ1_M: which weights of a block round down, to the middle and up.

With three levels the best rounding can be found exactly. Sorted, the weights that take the same level lie side by side, so a
rounding is two splits of the sorted block, before places i <= j, and running sums give its fit at once. All pairs are tried,
with the levels -1, 0 and 1 shifted up and down by an eighth; IQ1_M shifts each half of a block on its own. As in
affine_search.py, LANES blocks are searched side by side: arrays are [position, lane].
"""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, ONE, ZERO, inlined

DELTA = np.float32(0.125)
MORE, LESS = ONE + DELTA, ONE - DELTA  # sizes of the outer levels: shifted up the highest is MORE and the lowest -LESS
FROM_MORE = MORE * MORE - DELTA * DELTA  # how much more the square of an outer level is than that of the middle one
FROM_LESS = LESS * LESS - DELTA * DELTA
LOWEST = np.float32(np.finfo(np.float32).min)
NOTHING = np.int32(-1)  # the choice where no rounding has a fit


@inlined
def rank(value, place):
    """The place of every value in its sorted block, int32 [position, lane]; of equals the first comes first."""
    place[:] = np.int32(0)
    for i in range(len(value)):
        for j in range(i):
            for b in range(LANES):
                after = np.int32(value[j, b] <= value[i, b])
                place[i, b] += after
                place[j, b] += np.int32(1) - after


@inlined
def running_sums(value, weight, place, start, stop, sum_x, sum_w):
    """Sums of weight * value and of weight over the places before each split, float32 [positions + 1, lane].

    Only the positions from `start` to before `stop` count.
    """
    sum_x[:] = ZERO
    sum_w[:] = ZERO
    for i in range(start, stop):
        for b in range(LANES):
            behind = place[i, b] + 1
            sum_x[behind, b] = weight[i, b] * value[i, b]
            sum_w[behind, b] = weight[i, b]
    for j in range(len(value)):
        for b in range(LANES):
            sum_x[j + 1, b] += sum_x[j, b]
            sum_w[j + 1, b] += sum_w[j, b]


@inlined
def consider(x, w, choice, scale, score, kept):
    """Scale, score and choice of the better of two roundings: one of sums x and w, and the one that is kept so far."""
    fit = x / w
    better = (w > ZERO) & (x * x > score * w)
    return fit if better else scale, fit * x if better else score, choice if better else kept


@inlined
def tabulate_s(table):
    """Complete the table of search_s, of which rows 0 and 1 are the running sums.

    Rows 2 to 5: what the weights of the lowest level add to x and w, shifted up, and to x and w, shifted down, for a split at
    each place; rows 6 to 9: the same of the highest level.
    """
    for j in range(33):
        for b in range(LANES):
            x, w = table[0, j, b], table[1, j, b]
            table[2, j, b], table[3, j, b] = x * -LESS, w * LESS * LESS
            table[4, j, b], table[5, j, b] = x * -MORE, w * MORE * MORE
            x, w = table[0, 32, b] - x, table[1, 32, b] - w
            table[6, j, b], table[7, j, b] = x * MORE, w * MORE * MORE
            table[8, j, b], table[9, j, b] = x * LESS, w * LESS * LESS


@inlined
def try_splits_s(table, fits, choices):
    """The best pair of splits of each block of 32: scale and score in fits [2, lane]; its choice 128 * i + 2 * j + shift."""
    for i in range(33):
        for j in range(i, 33):
            choice = np.int32(128 * i + 2 * j)
            for b in range(LANES):
                x = (table[0, j, b] - table[0, i, b]) * DELTA
                w = (table[1, j, b] - table[1, i, b]) * DELTA * DELTA
                up_x, up_w = table[2, i, b] + x + table[6, j, b], table[3, i, b] + w + table[7, j, b]
                down_x, down_w = table[4, i, b] - x + table[8, j, b], table[5, i, b] + w + table[9, j, b]
                scale, score, kept = consider(up_x, up_w, choice, fits[0, b], fits[1, b], choices[b])
                scale, score, kept = consider(down_x, down_w, choice + np.int32(1), scale, score, kept)
                fits[0, b], fits[1, b], choices[b] = scale, score, kept


@inlined
def tabulate_m(table, totals):
    """Complete the table of try_splits_m, of which rows 0 and 1, 2 and 3 are the running sums of x and w in each half.

    Rows 4 and 5: first part of w, shifted up and down, of the first half for a split at each place; 6 and 7: of the second.
    Rows 8 and 9, 10 and 11: second part. totals: float32 [4, lane], the sum of x of each half by its highest levels.
    """
    for h in range(2):
        for b in range(LANES):
            totals[2 * h, b] = table[2 * h, 16, b] * MORE
            totals[2 * h + 1, b] = table[2 * h, 16, b] * LESS
        for j in range(17):
            for b in range(LANES):
                w, total = table[2 * h + 1, j, b], table[2 * h + 1, 16, b]
                table[4 + 2 * h, j, b] = total * MORE * MORE + w * FROM_LESS
                table[5 + 2 * h, j, b] = total * LESS * LESS + w * FROM_MORE
                table[8 + 2 * h, j, b] = w * -FROM_MORE
                table[9 + 2 * h, j, b] = w * -FROM_LESS


@inlined
def try_splits_m(table, totals, fits, choices):
    """The best pair of splits of each block of 16: scale and score in fits [2, lane]; its choice 128 * i + 4 * j + shift."""
    for i in range(17):
        for j in range(i, 17):
            choice = np.int32(128 * i + 4 * j)
            for b in range(LANES):
                x, y = table[0, i, b] + table[0, j, b], table[2, i, b] + table[2, j, b]
                up_x, down_x, up_y, down_y = totals[0, b] - x, totals[1, b] - x, totals[2, b] - y, totals[3, b] - y
                up_v, down_v = table[4, i, b] + table[8, j, b], table[5, i, b] + table[9, j, b]
                up_w, down_w = table[6, i, b] + table[10, j, b], table[7, i, b] + table[11, j, b]
                scale, score, kept = consider(up_x + up_y, up_v + up_w, choice, fits[0, b], fits[1, b], choices[b])
                scale, score, kept = consider(up_x + down_y, up_v + down_w, choice + np.int32(1), scale, score, kept)
                scale, score, kept = consider(down_x + up_y, down_v + up_w, choice + np.int32(2), scale, score, kept)
                scale, score, kept = consider(down_x + down_y, down_v + down_w, choice + np.int32(3), scale, score, kept)
                fits[0, b], fits[1, b], choices[b] = scale, score, kept
