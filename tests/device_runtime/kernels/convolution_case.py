"""Random convolutions with their arithmetic, and what numpy makes of them.

The formulas are those of docs/specification/arithmetic.md over int64; nothing of the C is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from codegen.arithmetic.integers import apply_gain, round_shift, step_gain
from codegen.arithmetic.layers import Gain
from codegen.graph.ir import Conv, Padding, Tensor
from codegen.program.row_pairs import pack_rows
from simulator.machines.kernel_call import Struct

Ints = NDArray[np.int64]
INT32_MAX = 2**31 - 1

EDGES = [
    (0, 0, 1, 1),
    (0, 0, 0, 1),
    (0, 0, 1, 0),
    (0, 0, 3, 2),
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (1, 0, 0, 1),
    (0, 1, 1, 0),
    (1, 1, 1, 1),
]
"""Padding around a kernel of one tap: top, left, bottom, right. The first four found kernels that
took a layer for one without padding, since there was none at the top and the left."""


def packed(weights: Ints) -> NDArray[np.int8]:
    """(O, Kh, Kw, I) in row pairs, as blobs have it."""
    return pack_rows(weights.reshape(weights.shape[0], -1).astype(np.int8))


@dataclass(frozen=True)
class Case:
    """One layer and its tensors; everything else follows from ``seed``."""

    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    """top, left, bottom, right"""
    trained: tuple[int, ...]
    """Trained input channels, ascending."""
    seed: int
    extreme: bool = False
    """All values at the ends of their ranges."""
    raised: bool = False
    """Some channels have sums that go left before they are requantized."""
    at_once: int = 4
    """Pixels that a full convolution works on at a time."""

    @cached_property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def values(self, low: int, high: int, *shape: int) -> Ints:
        if self.extreme:
            return self.random.choice(np.array([low, high], np.int64), shape)
        return self.random.integers(low, high, shape, endpoint=True)

    @cached_property
    def out_shape(self) -> tuple[int, int, int]:
        top, left, bottom, right = self.padding
        return (
            (self.height + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (self.width + left + right - self.kernel[1]) // self.stride[1] + 1,
            self.outputs,
        )

    @property
    def pixels(self) -> int:
        return self.out_shape[0] * self.out_shape[1]

    @cached_property
    def in_zero(self) -> int:
        return int(self.values(-128, 127))

    @cached_property
    def out_zero(self) -> int:
        return int(self.values(-128, 127))

    @cached_property
    def input(self) -> NDArray[np.int8]:
        return self.values(-128, 127, self.height, self.width, self.channels).astype(np.int8)

    @cached_property
    def weights(self) -> Ints:
        return self.values(-127, 127, self.outputs, *self.kernel, self.channels)

    @cached_property
    def terms(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.channels

    @cached_property
    def bias(self) -> NDArray[np.int32]:
        room = INT32_MAX - self.terms * 127 * 255
        small = min(room, 40 * self.terms**2 + 1)
        bias = self.values(-small, small, self.outputs)
        if self.raised:  # some as large as they get, whatever goes left
            bias = np.where(self.random.random(self.outputs) < 0.3, np.sign(bias) * room, bias)
        return bias.astype(np.int32)

    @cached_property
    def requantize(self) -> NDArray[np.int32]:
        """Factors that spread the sums over some more than the codes; shift in the low bits."""
        spread = 127.0 * 64 * np.sqrt(self.terms)
        factor = 200.0 / spread * self.random.uniform(0.2, 1.0, self.outputs)
        exponent = np.frexp(factor)[1]
        shift = np.clip(-exponent - 1, 1, 22)
        largest = np.minimum(factor * 2.0 ** (32 + shift), INT32_MAX - 31)
        mantissa: Ints = largest.astype(np.int64)
        words: Ints = mantissa // 32 * 32 + shift
        # Sums go left as far as brings their factor to between one eighth and one quarter.
        large = self.random.integers(2**30, INT32_MAX - 31, self.outputs) // 32 * 32 + 1
        return np.where(self.pre_shift > 0, large, words).astype(np.int32)

    @cached_property
    def pre_shift(self) -> NDArray[np.uint8]:
        shifts = self.random.choice([0, 0, 1, 2, 5, 9, 23], self.outputs) * self.raised
        return shifts.astype(np.uint8)

    @cached_property
    def error_multiplier(self) -> NDArray[np.int16]:
        return self.values(1, 32767, self.outputs).astype(np.int16)

    @cached_property
    def error_headroom(self) -> int:
        terms = self.outputs * self.kernel[0] * self.kernel[1]
        return max(0, (32767 * 127 * terms).bit_length() - 31)

    @cached_property
    def error_shift(self) -> int:
        norm = int(np.abs(self.weights).sum(axis=(0, 1, 2)).max()) // (1 if self.extreme else 4)
        return max(0, (norm * (32767 >> self.error_headroom)).bit_length() - 15)

    @cached_property
    def gradient_shift(self) -> int:
        largest = self.pixels * 32767 * 255
        return largest.bit_length() - 31 if largest > INT32_MAX else 0

    @cached_property
    def weight_gain(self) -> NDArray[np.uint32]:
        mantissa = self.random.integers(2**23, 2**24, self.outputs)
        exponent = self.random.integers(-40, -20, self.outputs)
        return (mantissa << 8 | exponent & 0xFF).astype(np.uint32)

    @cached_property
    def layer(self) -> Struct:
        """The tf_convolution."""
        top, left, _, _ = self.padding
        out_height, out_width, _ = self.out_shape
        return Struct(
            *(("H", size) for size in (self.height, self.width, self.channels)),
            *(("H", size) for size in (out_height, out_width, self.outputs)),
            *(("B", size) for size in (*self.kernel, *self.stride, top, left)),
            ("h", self.in_zero),
            ("h", self.out_zero),
            ("P", self.requantize),
            ("P", self.pre_shift if self.raised else None),
            ("i", 0),
            ("P", self.error_multiplier),
            ("b", 3),
            ("B", self.error_headroom),
            ("B", self.error_shift),
            ("B", self.gradient_shift),
            ("P", self.weight_gain),
            ("P", None),
        )

    def span(
        self, first: int, end: int, in_ring: int | None = None, out_ring: int | None = None
    ) -> Struct:
        """A tf_span; whole tensors where no ring is given."""
        rings = in_ring or self.height, out_ring or self.out_shape[0]
        return Struct(("H", first), ("H", end), ("H", rings[0]), ("H", rings[1]))

    @cached_property
    def tf_weights(self) -> Struct:
        """The trained channels are garbage in the fixed copy."""
        fixed = self.weights.copy()
        fixed[..., list(self.trained)] = self.values(-127, 127, *fixed[..., : self.count].shape)
        trained = self.weights[..., list(self.trained)]
        return Struct(
            ("P", packed(fixed)),
            ("P", packed(trained) if self.count else None),
            ("P", np.array(self.trained, np.uint16) if self.count else None),
            ("H", self.count),
        )

    @cached_property
    def op(self) -> Conv:
        """As the compiler has it."""
        codes = self.weights.astype(np.int8)
        ones = np.ones(self.outputs)
        padding = Padding(*self.padding)
        return Conv("layer", "in", "out", codes, ones, self.bias, self.stride, padding)

    @property
    def source(self) -> Tensor:
        """The input as the compiler has it."""
        return Tensor("in", (self.height, self.width, self.channels), 1.0, self.in_zero)

    @property
    def target(self) -> Tensor:
        """The output as the compiler has it."""
        return Tensor("out", self.out_shape, 1.0, self.out_zero)

    @property
    def count(self) -> int:
        return len(self.trained)

    # What numpy says.

    def windows(self) -> list[tuple[int, int, tuple[slice, slice]]]:
        """Kernel row and column, and the padded input positions that they see."""
        height, width, _ = self.out_shape
        return [
            (
                row,
                column,
                (
                    slice(row, row + (height - 1) * self.stride[0] + 1, self.stride[0]),
                    slice(column, column + (width - 1) * self.stride[1] + 1, self.stride[1]),
                ),
            )
            for row in range(self.kernel[0])
            for column in range(self.kernel[1])
        ]

    @cached_property
    def padded(self) -> Ints:
        top, left, bottom, right = self.padding
        shifted = self.input.astype(np.int64) - self.in_zero
        return np.pad(shifted, ((top, bottom), (left, right), (0, 0)))

    @cached_property
    def codes_before_clamp(self) -> Ints:
        sums = np.zeros(self.out_shape, np.int64) + self.bias
        for row, column, window in self.windows():
            sums += self.padded[window] @ self.weights[:, row, column].T
        assert np.abs(sums).max() <= INT32_MAX
        raised = np.clip(sums << self.pre_shift.astype(np.int64), -INT32_MAX, INT32_MAX)
        word: Ints = self.requantize.astype(np.int64)
        shift = word & 31
        high = (raised * word) >> 32
        before: Ints = (high + (1 << (shift - 1)) + (self.out_zero << shift)) >> shift
        return before

    @property
    def output(self) -> NDArray[np.int8]:
        return np.clip(self.codes_before_clamp, -128, 127).astype(np.int8)

    @property
    def mask(self) -> NDArray[np.uint8]:
        passes = self.output == self.codes_before_clamp
        return np.packbits(passes.ravel(), bitorder="little")

    def error(self, magnitude: int = 32767) -> NDArray[np.int16]:
        return self.values(-magnitude, magnitude, *self.out_shape).astype(np.int16)

    def input_gradient(self, error: NDArray[np.int16], exponent: int) -> tuple[Ints, int]:
        """Codes and exponent of the input's error."""
        left = 15 - int(np.abs(error.astype(np.int64)).max()).bit_length() - self.error_headroom
        scaled = round_shift(error.astype(np.int64) * self.error_multiplier, 15 - left)
        padded = np.zeros_like(self.padded)
        for row, column, window in self.windows():
            padded[window] += scaled @ self.weights[:, row, column]
        top, pad_left, _, _ = self.padding
        sums = padded[top : top + self.height, pad_left : pad_left + self.width]
        assert np.abs(sums).max() <= INT32_MAX
        codes = np.clip(round_shift(sums, self.error_shift), -32767, 32767)
        return codes, exponent + 3 - left + self.error_shift

    def weight_gradient(self, error: NDArray[np.int16]) -> Ints:
        """(O, Kh, Kw, trained), after gradient_shift."""
        taps = [
            np.tensordot(error.astype(np.int64), self.padded[window], axes=((0, 1), (0, 1)))
            for _, _, window in self.windows()
        ]
        gradient = np.stack(taps, axis=1).reshape(self.weights.shape)
        return round_shift(gradient[..., list(self.trained)], self.gradient_shift)

    def change(self, error: NDArray[np.int16], exponent: int, learning_rate_q20: int) -> Ints:
        """Change of each trained weight in 2**-exponent steps, after all shifts."""
        gradient = self.weight_gradient(error)
        change = np.zeros_like(gradient)
        for o, word in enumerate(self.weight_gain):
            gain = Gain(int(word) >> 8, int(np.int8(np.uint8(int(word) & 0xFF))))
            step = step_gain(gain, learning_rate_q20)
            change[o] = apply_gain(gradient[o], step, exponent + self.gradient_shift)
        return change


def padded_pointwise(padding: tuple[int, int, int, int], trained: tuple[int, ...] = ()) -> Case:
    """A kernel of one tap and stride 1, of channels that all kernels take the short way with."""
    return Case(5, 4, 8, 8, (1, 1), (1, 1), padding, trained, seed=3)


@st.composite
def cases(draw: st.DrawFn, *, pointwise: bool | None = None, most_outputs: int = 19) -> Case:
    """Shapes from one pixel up; any kernel, stride and padding, also those beyond the image."""
    small = st.integers(1, 3)
    if draw(st.booleans()) if pointwise is None else pointwise:
        kernel, stride, padding = (1, 1), (1, 1), (0, 0, 0, 0)
    else:
        side = st.integers(1, 4)
        kernel = draw(st.just((1, 1)) | st.tuples(side, side) | st.tuples(side, side))
        stride = draw(st.just((1, 1)) | st.tuples(small, small))
        top, left, bottom, right = (
            draw(st.integers(0, kernel[axis] - 1) | st.integers(0, kernel[axis] + 2))
            for axis in (0, 1, 0, 1)
        )
        padding = (top, left, bottom, right)
    least = [max(1, kernel[axis] - padding[axis] - padding[axis + 2]) for axis in (0, 1)]
    channels = draw(st.integers(1, 21) | st.sampled_from([32, 48, 70]))
    trained = draw(st.sets(st.integers(0, channels - 1)) | st.just(set()))
    return Case(
        height=draw(st.integers(least[0], 9)),
        width=draw(st.integers(least[1], 9)),
        channels=channels,
        outputs=draw(st.integers(1, most_outputs)),
        kernel=kernel,
        stride=stride,
        padding=padding,
        trained=tuple(sorted(trained)),
        seed=draw(st.integers(0, 2**16)),
        extreme=draw(st.sampled_from([False, False, False, True])),
        raised=draw(st.sampled_from([False, False, False, True])),
        at_once=draw(st.sampled_from([4, 8, 12, 48])),
    )
