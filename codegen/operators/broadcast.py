"""Tensors that stand for larger ones: ``tf_broadcast``, and sums over what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Ints, round_shift
from codegen.arithmetic.layers import INT32_MAX
from codegen.graph.ir import Shape, Tensor

ERROR_MAX = 32767

_Number = TypeVar("_Number", np.int64, np.float64)


def sum_shift(small: Tensor, whole: Tensor, largest: int) -> int:
    """Bits by which terms up to ``largest`` go right, so that all of an element fit 32 bits."""
    count, shift = whole.size // small.size, 0
    while count * ((largest >> shift) + 1) > INT32_MAX:
        shift += 1
    return shift


def broadcast_fields(small: Shape, whole: Shape, shift: int = 0) -> str:
    """What stands between the braces of ``tf_broadcast`` for a tensor of shape ``small``."""
    height, width, channels = small
    row = 0 if height == 1 else width * channels
    column = 0 if width == 1 else channels
    sizes = ", ".join(map(str, whole))
    return f"{sizes}, {row}u, {column}u, {int(channels > 1)}, {shift}"


def summed(values: NDArray[_Number], shape: Sequence[int]) -> NDArray[_Number]:
    """Sums of ``values`` (H, W, C) over the axes in which ``shape`` has one entry."""
    axes = tuple(place for place, size in enumerate(shape) if size == 1)
    sums: NDArray[_Number] = values.sum(axis=axes, keepdims=True)
    return sums


def to_codes(sums: Ints, multiplier: int | None = None) -> tuple[Ints, int]:
    """Sums, times a Q15 factor if there is one, as error codes, and the power of two of those.

    Without a factor the largest takes 15 bits, with one its product with it.
    """
    bits = int(np.abs(sums).max()).bit_length()
    if multiplier is not None:
        return round_shift(sums * multiplier, bits), bits - 15
    shift = max(0, bits - 15)
    return np.clip(round_shift(sums, shift), -ERROR_MAX, ERROR_MAX), shift
