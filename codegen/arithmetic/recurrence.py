"""Integer arithmetic of recurrent cells: gates from a table, states in Q15, errors through time.

docs/specification/arithmetic.md derives the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.arithmetic.layers import (
    WEIGHT_MAX,
    Multiplier,
    relative_q15,
    requantization,
)
from codegen.errors import ModelError

ONE = 1 << 15
"""1 in Q15, in which states and gates are."""
LARGEST_STATE = ONE - 1
MOST_UNITS = 512
"""Of which every sum of products fits 32 bits, with a bias of some size."""
MOST_STEPS = 65535
LARGEST_GRADIENT = 1 << 30

ARGUMENT_BITS = 12
"""Bits below 1 of what goes into a gate."""
SIGMOID_TABLE = np.rint(ONE / (1 + np.exp(-np.arange(257) / 32))).astype(np.int64)


def sigmoid(x: Ints) -> Ints:
    """Q15 of an argument in Q12: a table from 0 to 8 with linear interpolation, and its mirror."""
    size = np.minimum(np.abs(x), 32767)
    entry, rest = size >> 7, size & 127
    rise = SIGMOID_TABLE[entry + 1] - SIGMOID_TABLE[entry]
    value = SIGMOID_TABLE[entry] + round_shift(rise * rest, 7)
    mirrored: Ints = np.where(x < 0, ONE - value, value)
    return mirrored


def tanh(x: Ints) -> Ints:
    """Q15 of half of an argument in Q12."""
    return 2 * sigmoid(x) - ONE


@dataclass(frozen=True, eq=False)
class RecurrentArithmetic:
    """What ``tf_recurrence`` holds; arrays have one entry per row of the recurrent weights.

    ``words`` are multipliers from sums to Q12, ``input_multiplier`` and ``input_shift`` make Q12 of
    an input's steps, ``output`` and ``pre_shift`` codes of the state.
    """

    words: NDArray[np.int64]
    input_multiplier: int
    input_shift: int
    output: Multiplier
    pre_shift: int
    row_multiplier: NDArray[np.int64]
    row_exponent: int
    row_headroom: int
    error_multiplier: int
    error_exponent: int


def recurrent_arithmetic(
    name: str, row_scale: NDArray[np.float64], input_scale: float, output_scale: float
) -> RecurrentArithmetic:
    """Constants of the cell ``name``. Raises ModelError for scales out of all proportion."""
    words, left = requantization(row_scale * 2.0 ** (ARGUMENT_BITS - 15))
    steps = input_scale * 2.0**ARGUMENT_BITS
    shift = min(22 - int(np.frexp(steps)[1]), 23)
    if left.any() or shift < 1:
        raise ModelError(
            f"layer {name}: its gates have weights up to {WEIGHT_MAX * row_scale.max():.3g} and "
            f"inputs in steps of {input_scale:.3g}; train it with weight decay, or calibrate with "
            "typical inputs"
        )
    output, pre_shift = requantization(np.array([2.0**-15 / output_scale]))
    rows, row_exponent = relative_q15(row_scale)
    error, error_exponent = relative_q15(np.array([input_scale / output_scale]))
    return RecurrentArithmetic(
        words=words,
        input_multiplier=round(steps * 2.0**shift),
        input_shift=shift,
        output=Multiplier(int(output[0])),
        pre_shift=int(pre_shift[0]),
        row_multiplier=rows,
        row_exponent=row_exponent,
        row_headroom=max(0, (LARGEST_STATE * WEIGHT_MAX * len(rows)).bit_length() - 31),
        error_multiplier=int(error[0]),
        error_exponent=error_exponent,
    )


def scaled(values: Ints, factors: Ints) -> Ints:
    """Products with factors in Q15."""
    return round_shift(values * factors, 15)


def held(values: Ints) -> Ints:
    """Gradients within 30 bits."""
    return np.clip(values, -LARGEST_GRADIENT, LARGEST_GRADIENT)


def normalized(values: Ints) -> tuple[Ints, int]:
    """Values as codes of 15 bits, and the power of two of these; zeros stay as they are."""
    bits = int(np.abs(values).max()).bit_length()
    shift = bits - 15 if bits else 0
    return np.clip(round_shift(values, shift), -32767, 32767), shift


def merged(carried: Error, arriving: Error) -> Error:
    """Both, added; of one exponent and normalized.

    ``carried`` may have more rows than ``arriving``, which is added to the first.
    """
    if arriving.magnitude == 0:
        return carried
    if carried.magnitude == 0:
        codes = np.zeros_like(carried.codes)
        codes[0] = arriving.codes
        return Error(codes, arriving.exponent)
    exponent = max(carried.exponent, arriving.exponent)
    total = round_shift(carried.codes << 14, min(exponent - carried.exponent, 31))
    total[0] += round_shift(arriving.codes << 14, min(exponent - arriving.exponent, 31))
    codes, shift = normalized(total)
    return Error(codes, exponent - 14 + shift)


def back_through(
    weights: Ints, by: RecurrentArithmetic, rows: slice, codes: Ints, exponent: int
) -> Ints:
    """What a state gets of errors of 15 bits of some rows; ``exponent`` is theirs, relative to that
    of the result."""
    room = by.row_headroom
    terms = round_shift(codes * by.row_multiplier[rows], 15 + room)
    sums = terms @ weights[rows]
    shift = -(by.row_exponent + room + exponent)
    return held(round_shift(sums, shift)) if shift < 62 else np.zeros_like(sums)


def gathered(rows: list[Error], by: RecurrentArithmetic) -> Error:
    """Errors of all steps, each with an exponent of its own, as those of one tensor."""
    exponent = max((row.exponent for row in rows if row.magnitude), default=0)
    parts = [
        round_shift(row.codes * by.error_multiplier, 15 + min(exponent - row.exponent, 16))
        if row.magnitude
        else row.codes
        for row in rows
    ]
    return Error(np.stack(parts), exponent + by.error_exponent)
