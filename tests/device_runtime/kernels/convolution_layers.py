"""Random depthwise layers, as the C kernels and as numpy see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.graph.ir import DepthwiseConv, Padding, Tensor
from simulator.machines.kernel_call import Struct
from tests.device_runtime.kernels.calls import Ints


@dataclass(frozen=True)
class Depthwise:
    """Size of a depthwise layer; constants of its arithmetic are drawn from ``seed``."""

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]
    """Top, left, bottom, right."""
    in_zero: int
    out_zero: int
    raised: bool
    """Some channels have sums that go left before they are requantized."""
    error_shift: int
    gradient_shift: int
    seed: int

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + self.pad[0] + self.pad[2] - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width + self.pad[1] + self.pad[3] - self.kernel[1]) // self.stride[1] + 1

    @property
    def generator(self) -> np.random.Generator:
        """The same numbers each time."""
        return np.random.default_rng(self.seed)

    @property
    def requantize(self) -> Ints:
        """Words of tf_multiplier with shifts and mantissas of all sizes."""
        draw = self.generator
        taps = self.kernel[0] * self.kernel[1]
        # So that sums of any size come out near the output's range.
        shift = draw.integers(1, 12 + taps.bit_length(), self.channels)
        mantissa: Ints = draw.integers(2**29, 2**31, self.channels)
        words: Ints = np.maximum(mantissa & ~31, 32) | np.clip(shift, 1, 22)
        # Sums go left as far as brings their factor to between one eighth and one quarter.
        large = (mantissa & ~31) | 2**30 | 1
        return np.where(self.pre_shift > 0, large, words)

    @property
    def pre_shift(self) -> Ints:
        """Of each channel."""
        draw = np.random.default_rng(self.seed + 6)
        return draw.choice([0, 0, 1, 2, 5, 9, 23], self.channels) * self.raised

    @property
    def error_multiplier(self) -> Ints:
        """Q15 factors."""
        return self.generator.integers(0, 2**15, self.channels)

    @property
    def weight_gain(self) -> Ints:
        """Words of tf_gain."""
        draw = self.generator
        mantissa = draw.integers(2**23, 2**24, self.channels)
        exponent = draw.integers(-40, -20, self.channels)
        gains: Ints = (mantissa << 8) | (exponent & 0xFF)
        return gains

    @property
    def bias_limit(self) -> int:
        """As codegen.arithmetic.layers has it."""
        taps = self.kernel[0] * self.kernel[1]
        return 2**31 - 1 - taps * 127 * 255

    @property
    def op(self) -> DepthwiseConv:
        """As the compiler has it."""
        ones = np.ones(self.channels)
        bias = np.zeros(self.channels, np.int32)
        weight = self.weights().astype(np.int8)
        return DepthwiseConv("dw", "in", "out", weight, ones, bias, self.stride, Padding(*self.pad))

    @property
    def source(self) -> Tensor:
        """The input as the compiler has it."""
        return Tensor("in", (self.height, self.width, self.channels), 1.0, self.in_zero)

    @property
    def target(self) -> Tensor:
        """The output as the compiler has it."""
        return Tensor("out", (self.out_height, self.out_width, self.channels), 1.0, self.out_zero)

    def struct(self) -> Struct:
        """tf_convolution."""
        sizes = [self.height, self.width, self.channels]
        sizes += [self.out_height, self.out_width, self.channels]
        small = [*self.kernel, *self.stride, self.pad[0], self.pad[1]]
        return Struct(
            *(("H", value) for value in sizes),
            *(("B", value) for value in small),
            ("h", self.in_zero),
            ("h", self.out_zero),
            ("P", self.requantize.astype(np.int32)),
            ("P", self.pre_shift.astype(np.uint8) if self.raised else None),
            ("i", self.bias_limit),
            ("P", self.error_multiplier.astype(np.int16)),
            ("b", -3),
            ("B", 0),
            ("B", self.error_shift),
            ("B", self.gradient_shift),
            ("P", self.weight_gain.astype(np.uint32)),
            ("P", self.weight_gain.astype(np.uint32)),
        )

    def codes(self, height: int, width: int) -> Ints:
        """Random int8 codes, some of them at the ends."""
        draw = np.random.default_rng(self.seed + 1)
        codes = draw.integers(-128, 128, (height, width, self.channels))
        ends = draw.choice([-128, 127], codes.shape)
        return np.where(draw.random(codes.shape) < 0.2, ends, codes)

    def weights(self) -> Ints:
        """[Kh][Kw][C], some of them at the ends."""
        draw = np.random.default_rng(self.seed + 2)
        weights = draw.integers(-127, 128, (*self.kernel, self.channels))
        ends = draw.choice([-127, 127], weights.shape)
        return np.where(draw.random(weights.shape) < 0.3, ends, weights)

    def biases(self) -> Ints:
        """Of all sizes up to the limit."""
        draw = np.random.default_rng(self.seed + 3)
        bits = draw.integers(1, 31, self.channels)
        biases: Ints = draw.integers(-(2**31), 2**31, self.channels) >> bits
        return np.maximum(np.minimum(biases, self.bias_limit), -self.bias_limit)

    def errors(self) -> Ints:
        """Of the output."""
        draw = np.random.default_rng(self.seed + 4)
        bits = int(draw.integers(0, 15))
        errors = draw.integers(-32767, 32768, (self.out_height, self.out_width, self.channels))
        return np.where(draw.random(errors.shape) < 0.3, 0, errors >> bits)

    def weights_struct(self) -> Struct:
        """tf_weights: the blob has garbage where trained channels have their own."""
        trained, weights = self.trained(), self.weights()
        fixed = weights.copy()
        fixed[..., trained] = 99
        return Struct(
            ("P", fixed.astype(np.int8)),
            ("P", np.ascontiguousarray(weights[..., trained]).astype(np.int8)),
            ("P", trained.astype(np.uint16)),
            ("H", len(trained)),
        )

    def trained(self) -> Ints:
        """Some channels, ascending; none at times."""
        draw = np.random.default_rng(self.seed + 5)
        share = draw.choice([0.0, 0.3, 0.8])
        return np.flatnonzero(draw.random(self.channels) < share)

    def padded(self, codes: Ints) -> Ints:
        """Codes minus zero point with zeros around."""
        top, left, bottom, right = self.pad
        return np.pad(codes - self.in_zero, ((top, bottom), (left, right), (0, 0)))

    def windows(self, padded: Ints) -> list[tuple[int, int, Ints]]:
        """Kernel row, column, and the positions that they see, as a view: one per tap."""
        rows = slice(None, None, self.stride[0])
        columns = slice(None, None, self.stride[1])
        high = (self.out_height - 1) * self.stride[0] + 1
        wide = (self.out_width - 1) * self.stride[1] + 1
        return [
            (i, j, padded[i : i + high, j : j + wide][rows, columns])
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]

    def values_before_clamp(self, codes: Ints) -> Ints:
        """The specification's forward pass."""
        weights = self.weights()
        sums = (
            sum(window * weights[i, j] for i, j, window in self.windows(self.padded(codes)))
            + self.biases()
        )
        assert np.abs(np.asarray(sums)).max() <= 2**31 - 1
        total = np.clip(np.asarray(sums) << self.pre_shift, -(2**31) + 1, 2**31 - 1)
        words = self.requantize
        shift = words & 31
        high = (total * words) >> 32
        values: Ints = ((high + (1 << (shift - 1))) >> shift) + self.out_zero
        return values

    def input_gradient(self, errors: Ints) -> tuple[Ints, int]:
        """The specification's, and its exponent relative to the error's."""
        weights = self.weights()
        shape = (
            self.height + self.pad[0] + self.pad[2],
            self.width + self.pad[1] + self.pad[3],
            self.channels,
        )
        padded = np.zeros(shape, np.int64)
        for i, j, window in self.windows(padded):
            window += errors * weights[i, j]
        sums = padded[
            self.pad[0] : self.pad[0] + self.height, self.pad[1] : self.pad[1] + self.width
        ]
        left = 15 - int(np.abs(errors).max()).bit_length()
        codes = round_shift(sums * self.error_multiplier, 15 + self.error_shift - left)
        return np.clip(codes, -32767, 32767), -3 - left + self.error_shift

    def weight_gradient(self, codes: Ints, errors: Ints) -> Ints:
        """[Kh][Kw][C], rounded by gradient_shift."""
        sums = [
            (errors * window).sum(axis=(0, 1)) for _, _, window in self.windows(self.padded(codes))
        ]
        gradient = np.stack(sums).reshape(*self.kernel, self.channels)
        return round_shift(gradient, self.gradient_shift) if self.gradient_shift else gradient


@st.composite
def depthwise_layers(draw: st.DrawFn, same_size: bool = False) -> Depthwise:
    """Kernels from 1 x 1 to 10 x 9, square ones most of all; any padding, also beyond the kernel.

    With ``same_size`` input and output have one.
    """
    side = st.sampled_from([1, 2, 3, 3, 5, 5, 7, 7, 4, 6, 9])
    kernel_height = draw(side)
    kernel_width = draw(st.one_of(st.just(kernel_height), side))
    if draw(st.integers(0, 15)) == 0:
        kernel_height, kernel_width = draw(st.sampled_from([(10, 4), (1, 8), (9, 1), (8, 3)]))
    stride_height = draw(st.sampled_from([1, 1, 2, 2, 3]))
    stride_width = draw(st.one_of(st.just(stride_height), st.sampled_from([1, 2, 3])))
    if same_size:
        stride_height = stride_width = 1
    above = 0 if same_size else draw(st.sampled_from([0, 0, 0, 6]))
    pads = [draw(st.integers(0, size - 1 + above)) for size in (kernel_height, kernel_width) * 2]
    if same_size:
        pads[2:] = kernel_height - 1 - pads[0], kernel_width - 1 - pads[1]
    height = draw(st.integers(max(1, kernel_height - pads[0] - pads[2]), 14))
    width = draw(st.integers(max(1, kernel_width - pads[1] - pads[3]), 19))
    return Depthwise(
        height,
        width,
        draw(st.integers(1, 7) | st.sampled_from([8, 19, 37])),
        (kernel_height, kernel_width),
        (stride_height, stride_width),
        (pads[0], pads[1], pads[2], pads[3]),
        draw(st.integers(-128, 127)),
        draw(st.integers(-128, 127)),
        draw(st.sampled_from([False, False, False, True])),
        draw(st.integers(0, 14)),
        draw(st.sampled_from([0, 0, 3])),
        draw(st.integers(0, 2**20)),
    )
