"""Errors of the interpreter's pools, and its squared error, over arrays of int64 (H, W, C).

Written from docs/specification/arithmetic.md, like the rest of `codegen.reference.interpreter`.
"""

from __future__ import annotations

import numpy as np

from codegen.arithmetic.forward import pool_windows
from codegen.arithmetic.integers import Ints, round_shift
from codegen.arithmetic.layers import INT32_MAX
from codegen.arithmetic.pools import ReconstructionArithmetic
from codegen.graph.ir import AveragePool, Tensor

UINT32_MAX = 2**32 - 1


def max_pool_errors(source: Tensor, errors: Ints, places: Ints) -> Ints:
    """Each output's error added to the input position that it came from."""
    height, width, channels = source.shape
    result = np.zeros((height * width, channels), np.int64)
    every = np.broadcast_to(np.arange(channels), errors.shape)
    np.add.at(result, (places, every), errors)
    return result.reshape(source.shape)


def average_pool_errors(op: AveragePool, source: Tensor, output: Tensor, parts: Ints) -> Ints:
    """Each output's part added to all input positions under its window."""
    result = np.zeros(source.shape, np.int64)
    for y, x, rows, columns in pool_windows(op, source, output):
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
