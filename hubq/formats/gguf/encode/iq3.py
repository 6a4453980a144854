"""IQ3_XXS and IQ3_S: groups of 4 weights, each a point of a code book, signs beside them, one scale for 32 weights."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import ONE, ZERO, clamp, inlined, kernel, nearest, put_half, to_half
from hubq.formats.gguf.encode.iq3_search import BLOCK, GROUPS, book, scratch, search
from hubq.formats.gguf.encode.iq3_weigh import EVERY_COLUMN_ALIKE, mean_squares

TINY = np.float32(1e-8)  # a block of IQ3_XXS below this counts as zero
SIZE = 256


@inlined
def load(row, sigma, importance, column, s):
    """The weights of a block, how much the error of each counts, and that number's square root."""
    for i in range(BLOCK):
        s.x[i] = row[i]
        s.weight[i] = row[i] * row[i]
    if len(importance):
        for i in range(BLOCK):
            s.weight[i] = importance[column + i] * np.sqrt(sigma + row[i] * row[i])
    for i in range(BLOCK):
        s.root[i] = np.sqrt(s.weight[i])


@inlined
def take_signs(s, even, signs):
    """Make the weights magnitudes; signs: uint8 [4], a bit for each.

    With `even` the number of signs in eight is made even: of an odd number's weights, the one that counts least keeps its
    sign wrong, as a negative magnitude.
    """
    for k in range(4):
        byte, odd = np.int32(0), np.int32(0)
        lightest, least = 8 * k, s.weight[8 * k] * s.x[8 * k] * s.x[8 * k]
        for i in range(8 * k, 8 * k + 8):
            weighed = s.weight[i] * s.x[i] * s.x[i]
            if weighed < least:
                lightest, least = i, weighed
            below = np.int32(s.x[i] < ZERO)
            byte |= below << np.int32(i % 8)
            odd ^= below
            s.x[i] = abs(s.x[i])
        if even and odd:
            s.x[lightest] = -s.x[lightest]
            byte ^= np.int32(1) << np.int32(lightest % 8)
        signs[k] = byte & (127 if even else 255)


@inlined
def greatest_of(x):
    """The greatest of 32 values."""
    greatest = x[0]
    for i in range(1, BLOCK):
        greatest = x[i] if x[i] > greatest else greatest
    return greatest


@inlined
def step_count(scale, inverse):
    """The 4-bit level of a block's scale."""
    return clamp(nearest(np.float32(0.5) * (inverse * scale - ONE)), np.int32(0), np.int32(15))


@kernel
def encode_xxs(x, sigma, importance, book, out):
    """x: float32 [n, 256]; sigma: float32 [n]; out: uint8 [n, 98]: step, 8 bytes of points a block, then signs and scales."""
    s, scales, signs = scratch(), np.empty(8, np.float32), np.empty(4, np.uint8)
    words = np.empty(8, np.uint32)
    for n in range(len(x)):
        largest = ZERO
        out[n] = 0
        for j in range(8):
            load(x[n, BLOCK * j : BLOCK * j + BLOCK], sigma[n], importance, (SIZE * n + BLOCK * j) % max(1, len(importance)), s)
            take_signs(s, True, signs)
            greatest = greatest_of(s.x)
            words[j], scales[j] = 0, ZERO
            if greatest < TINY:
                continue
            scale = search(s, greatest, True, book)
            flip = np.uint32(0xFFFFFFF) if scale < ZERO else np.uint32(0)
            for k in range(4):
                words[j] |= np.uint32(signs[k]) << np.uint32(7 * k)
            words[j] ^= flip
            for k in range(GROUPS):
                out[n, 2 + 8 * j + k] = book.index[s.codes[k]]
            scales[j] = abs(scale)
            largest = scales[j] if scales[j] > largest else largest
        if largest == ZERO:
            out[n] = 0
            continue
        step = largest / np.float32(31)
        put_half(out[n], 0, to_half(step * np.float32(1.0125)))
        for j in range(8):
            words[j] |= np.uint32(step_count(scales[j], ONE / step)) << np.uint32(28)
            for byte in range(4):
                out[n, 66 + 4 * j + byte] = words[j] >> np.uint32(8 * byte) & np.uint32(255)


@kernel
def encode_s(x, sigma, importance, book, out):
    """x: float32 [n, 256]; sigma: float32 [n]; out: uint8 [n, 110]: step, low bytes and ninth bits of points, signs, scales.

    As in ggml a block of zeros leaves no gap: the low bytes and signs of the blocks behind it move up.
    """
    s, scales, signs = scratch(), np.empty(8, np.float32), np.empty(4, np.uint8)
    for n in range(len(x)):
        largest = ZERO
        out[n] = 0
        place = 0
        for j in range(8):
            load(x[n, BLOCK * j : BLOCK * j + BLOCK], sigma[n], importance, (SIZE * n + BLOCK * j) % max(1, len(importance)), s)
            take_signs(s, False, signs)
            greatest = greatest_of(s.x)
            scales[j] = ZERO
            if greatest == ZERO:
                continue
            scale = search(s, greatest, False, book)
            for k in range(4):
                out[n, 74 + 4 * place + k] = signs[k] ^ (255 if scale < ZERO else 0)
            for k in range(GROUPS):
                point = book.index[s.codes[k]]
                out[n, 2 + 8 * place + k] = point & 255
                out[n, 66 + j] |= (point >> 8 & 1) << k
            place += 1
            scales[j] = abs(scale)
            largest = scales[j] if scales[j] > largest else largest
        if largest == ZERO:
            continue
        step = largest / np.float32(31)
        put_half(out[n], 0, to_half(step * np.float32(1.033)))
        for j in range(4):
            low, high = step_count(scales[2 * j], ONE / step), step_count(scales[2 * j + 1], ONE / step)
            out[n, 106 + j] = low | high << 4


def encode_iq3_xxs(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to IQ3_XXS, uint8 [n, 98]; an error counts by the square of its weight."""
    encode_iq3_xxs_weighted(x, EVERY_COLUMN_ALIKE, out)


def encode_iq3_xxs_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ3_XXS, uint8 [n, columns / 256 * 98]; importance: float32 [columns]."""
    x = rows.reshape(-1, SIZE)
    encode_xxs(
        x, mean_squares(x, np.float32(2), np.float32(1 / SIZE)), importance, book("IQ3_XXS", 15), out.reshape(len(x), -1)
    )


def encode_iq3_s(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to IQ3_S, uint8 [n, 110]; an error counts by the square of its weight."""
    encode_iq3_s_weighted(x, EVERY_COLUMN_ALIKE, out)


def encode_iq3_s_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ3_S, uint8 [n, columns / 256 * 110]; importance: float32 [columns]."""
    x = rows.reshape(-1, SIZE)
    encode_s(x, mean_squares(x, np.float32(2), np.float32(1 / SIZE)), importance, book("IQ3_S", 9), out.reshape(len(x), -1))
