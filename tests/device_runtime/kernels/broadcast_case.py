"""Tensors that stand for larger ones, for the kernel tests, and the C structure of them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

Field = tuple[str, int]
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
ONES = st.tuples(st.booleans(), st.booleans(), st.booleans())


def small_shape(shape: tuple[int, ...], ones: tuple[bool, ...]) -> tuple[int, int, int]:
    height, width, channels = (1 if one else size for size, one in zip(shape, ones, strict=True))
    return height, width, channels


def broadcast(small: tuple[int, ...], whole: tuple[int, ...], shift: int) -> list[Field]:
    """tf_broadcast, with its strides as numpy has them."""
    strides = np.broadcast_to(np.zeros(small, np.int8), whole).strides
    channel = 0 if small[2] == 1 else 1
    row, column = (0 if small[i] == 1 else strides[i] for i in (0, 1))
    return [
        *(("H", size) for size in whole),
        ("I", row),
        ("I", column),
        ("H", channel),
        ("H", shift),
    ]
