"""The interpreter's pools and its squared error, as functions of arrays of int64 (H, W, C).

Written from docs/specification/arithmetic.md, like the rest of `codegen.reference.interpreter`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from codegen.arithmetic.integers import Ints, requantized, round_shift
from codegen.arithmetic.layers import INT32_MAX
from codegen.arithmetic.pools import AveragePoolArithmetic, ReconstructionArithmetic
from codegen.graph.ir import AveragePool, MaxPool, Tensor

UINT32_MAX = 2**32 - 1


def windows(
    op: MaxPool | AveragePool, source: Tensor, output: Tensor
) -> Iterator[tuple[int, int, slice, slice]]:
    """Output row and column, and the input rows and columns under that window."""
    for y in range(output.shape[0]):
        top = y * op.stride[0] - op.padding.top
        rows = slice(max(top, 0), min(top + op.window[0], source.shape[0]))
        for x in range(output.shape[1]):
            left = x * op.stride[1] - op.padding.left
            yield y, x, rows, slice(max(left, 0), min(left + op.window[1], source.shape[1]))


def max_pool(op: MaxPool, source: Tensor, output: Tensor, codes: Ints) -> tuple[Ints, Ints]:
    """Largest codes, and the flat input position (row * width + column) of the first of each."""
    largest, places = np.zeros(output.shape, np.int64), np.zeros(output.shape, np.int64)
    for y, x, rows, columns in windows(op, source, output):
        part = codes[rows, columns]
        flat = part.reshape(-1, part.shape[2])
        first = flat.argmax(axis=0)
        largest[y, x] = flat.max(axis=0)
        down, right = np.divmod(first, part.shape[1])
        places[y, x] = (rows.start + down) * source.shape[1] + columns.start + right
    return largest, places


def max_pool_errors(source: Tensor, errors: Ints, places: Ints) -> Ints:
    """Each output's error added to the input position that it came from."""
    height, width, channels = source.shape
    result = np.zeros((height * width, channels), np.int64)
    every = np.broadcast_to(np.arange(channels), errors.shape)
    np.add.at(result, (places, every), errors)
    return result.reshape(source.shape)


def mean_codes(total: Ints, count: Ints, zero: int) -> Ints:
    """Means of codes, halves to even; ``total`` is the sum of the codes less ``zero``."""
    raised = total + (zero + 128) * count
    mean = raised // count
    rest = 2 * (raised - mean * count)
    up = (rest > count) | ((rest == count) & (mean % 2 == 1))
    return np.asarray(mean + up - 128)


def average_pool(
    op: AveragePool,
    source: Tensor,
    output: Tensor,
    constants: AveragePoolArithmetic,
    counted: Ints,
    codes: Ints,
) -> Ints:
    """Codes before the clamp; ``counted`` (H, W, 1) has the positions of each window."""
    total = np.zeros(output.shape, np.int64)
    for y, x, rows, columns in windows(op, source, output):
        total[y, x] = (codes[rows, columns] - source.zero_point).sum(axis=(0, 1))
    if not constants.requantize:
        return mean_codes(total, counted, source.zero_point)
    index = counted - constants.least_count
    words = np.array([m.word for m in constants.requantize])[index]
    return requantized(total, constants.pre_shift, words) + output.zero_point


def average_pool_errors(op: AveragePool, source: Tensor, output: Tensor, parts: Ints) -> Ints:
    """Each output's part added to all input positions under its window."""
    result = np.zeros(source.shape, np.int64)
    for y, x, rows, columns in windows(op, source, output):
        result[rows, columns] += parts[y, x]
    return result


def squared_error(
    constants: ReconstructionArithmetic, values: Ints, wanted: Ints
) -> tuple[Ints, int, int]:
    """Error codes, their exponent, and the loss times 2^16.

    ``values`` are the head's outputs, ``wanted`` the input's codes less its zero point.
    """
    exact = [int(w) * constants.input_scale.mantissa for w in wanted]
    in_units = [round_shift(value, -constants.input_scale.exponent) for value in exact]
    difference = np.clip(values - np.array(in_units), -INT32_MAX, INT32_MAX)
    scaled = [int(d) * constants.error_scale.mantissa for d in difference]
    shift = max(abs(value) for value in scaled).bit_length() - 15
    codes = np.clip([round_shift(value, shift) for value in scaled], -32767, 32767)
    exponent = constants.error_scale.exponent + shift
    total = int((codes**2).sum()) * len(codes)
    left = 2 * exponent - 2 + 16
    loss = total << left if left > 0 else total >> -left
    return codes.astype(np.int64), exponent, min(loss, UINT32_MAX)
