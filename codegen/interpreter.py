"""Slow, plain numpy oracle: runs a program with the device's arithmetic, bit for bit.

It knows nothing of arenas, kernels or C: every step is written from
docs/specification/arithmetic.md, over named arrays of int64. ``Interpreter`` mirrors
tf_engine_load, tf_engine_score, tf_engine_train_step and the delta of the C engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen import blob
from codegen.ir import Add, Conv, DepthwiseConv, GlobalAveragePool, Head, Tensor
from codegen.layer_arithmetic import (
    INT32_MAX,
    Gain,
    addition_arithmetic,
    convolution_arithmetic,
    head_arithmetic,
    pooling_arithmetic,
)
from codegen.program import INPUT, Program, Step

Ints = NDArray[np.int64]

EXP2_TABLE = np.array([round(2.0 ** (30 - i / 64)) for i in range(65)])
LOG2_TABLE = np.rint(2**16 * np.log2(1 + np.arange(65) / 64)).astype(np.int64)
LARGEST_DISTANCE = 31 << 16
LN2_Q16 = 45426
DELTA_STREAM = 0xFFFFFFFF
STATE_BITS, STEP_BITS, BIAS_BITS = 14, 16, 8
"""Bits below one unit of the state (q8.8), one step of an int8 weight, one step of a bias that a
change has before it is rounded at random."""
LARGEST_CHANGE = 1 << 30


def random_bits(key: int, stream: int, counter: Ints) -> Ints:
    """``tf_random`` for an array of counters."""

    def mix(x: Ints) -> Ints:
        mask = np.uint64(0xFFFFFFFF)
        y = x.astype(np.uint64) & mask
        y ^= y >> np.uint64(16)
        y = y * np.uint64(0x7FEB352D) & mask
        y ^= y >> np.uint64(15)
        y = y * np.uint64(0x846CA68B) & mask
        y ^= y >> np.uint64(16)
        return y.astype(np.int64)

    start = mix(np.array([key + 0x9E3779B9], np.int64))
    bits: Ints = mix(mix(start + stream) + counter)
    return bits


def round_shift(value: Ints, shift: int) -> Ints:
    """Round half up by ``shift`` bits; to the left where negative."""
    if shift <= 0:
        return value << -shift
    return (value + (1 << (shift - 1))) >> shift


def random_move(change: Ints, bits: int, seed: int, step: int, first_value: int) -> Ints:
    """-change / 2**bits, up or down at random with the right odds; values in delta order."""
    counter = first_value + np.arange(change.size).reshape(change.shape)
    chance = random_bits(seed, step, counter) & ((1 << bits) - 1)
    move: Ints = (chance - np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE)) >> bits
    return move


def step_gain(gain: Gain, learning_rate_q20: int) -> Gain:
    """gain * learning rate with a mantissa below 2**31."""
    product = gain.mantissa * learning_rate_q20
    excess = max(0, product.bit_length() - 31)
    return Gain(product >> excess, gain.exponent - 20 + excess)


def apply_gain(gradient: Ints, gain: Gain, exponent: int) -> Ints:
    """gradient * gain * 2**exponent, rounded and saturated to 32 bits."""
    shift = -(gain.exponent + exponent)
    if shift > 62:
        return np.zeros_like(gradient)
    exact = gradient.astype(object) * gain.mantissa
    moved = exact * 2**-shift if shift <= 0 else (exact + (1 << (shift - 1))) // (1 << shift)
    saturated: Ints = np.clip(moved, -INT32_MAX, INT32_MAX).astype(np.int64)
    return saturated


@dataclass
class Error:
    """An error tensor: real value = codes * 2**exponent."""

    codes: Ints
    exponent: int

    @property
    def magnitude(self) -> int:
        """Largest absolute code."""
        return int(np.abs(self.codes).max(initial=0))

    @property
    def headroom(self) -> int:
        """Bits by which the codes can go left and still fit 15 bits and a sign."""
        return 15 - self.magnitude.bit_length()


def _saturate_error(values: Ints) -> Ints:
    return np.clip(values, -32767, 32767)


class Interpreter:
    """One device's training engine."""

    def __init__(self, program: Program, weights: bytes | None = None) -> None:
        """``weights`` is a blob; the graph's own where left out."""
        self.program = program
        self.graph = program.graph
        self.loaded = blob.unpack(self.graph, weights or blob.pack(self.graph))
        self.tensors = {name: values.copy() for name, values in self.loaded.items()}
        self.fractions = {
            s.tensor: np.zeros(self._trained_shape(s.tensor, s.count), np.int64)
            for s in program.segments
            if s.fraction_offset is not None
        }
        self.velocities: dict[str, Ints] = {}
        self.arrays: dict[str, Ints] = {}
        self.errors: dict[str, Error] = {}
        self.logits = np.zeros(self.graph.head.bias.size, np.int64)
        self.loss_q16 = 0
        self.label = 0
        self.learning_rate_q20 = 0
        self.seed = 0
        self.step_index = 0
        self.gradients: dict[str, tuple[Ints, int]] = {}
        """Tensor → (integer gradient, exponent) of the last step: with respect to output steps,
        before scaling; `codegen.float_autodiff.cosines` compares them with exact ones."""
        self._kernels: dict[str, Callable[[Step], None]] = {
            "convolution_forward": self._convolution_forward,
            "depthwise_forward": self._depthwise_forward,
            "add_forward": self._add_forward,
            "pool_forward": self._pool_forward,
            "head_forward": self._head_forward,
            "cross_entropy": self._cross_entropy,
            "head_input_gradient": self._head_input_gradient,
            "head_update": self._head_update,
            "pool_input_gradient": self._pool_input_gradient,
            "error_mask": self._error_mask,
            "error_scale": self._error_scale,
            "error_sum": self._error_sum,
            "convolution_input_gradient": self._convolution_input_gradient,
            "depthwise_input_gradient": self._depthwise_input_gradient,
            "bias_update": self._bias_update,
            "convolution_weight_update": self._convolution_weight_update,
            "depthwise_weight_update": self._depthwise_weight_update,
        }

    def _trained_shape(self, tensor: str, count: int) -> tuple[int, ...]:
        return (*self.loaded[tensor].shape[:-1], count)

    # The engine's interface.

    def score(self, sample: NDArray[np.int8], label: int) -> int:
        """Forward and loss; returns the predicted class."""
        self.arrays = {INPUT: sample.astype(np.int64)}
        self.label = label
        self._run("forward")
        self._run("loss")
        return int(np.argmax(self.logits))

    def train_step(
        self, sample: NDArray[np.int8], label: int, learning_rate_q20: int, seed: int
    ) -> None:
        """Forward, loss, backward, update."""
        self.learning_rate_q20 = learning_rate_q20 // self.program.plan.accumulate
        self.seed = seed
        self.score(sample, label)
        self._run("backward")
        self.step_index += 1

    def delta(self) -> Ints:
        """Values in plan order, in units of 2**shift state units."""
        parts = []
        for segment in self.program.segments:
            trained = np.s_[..., list(segment.channels)]
            change = self.tensors[segment.tensor][trained] - self.loaded[segment.tensor][trained]
            if self._is_int8(segment.tensor):
                change = change * 256 + self.fractions.get(segment.tensor, 0)
            counter = segment.first_value + np.arange(segment.values)
            bits = random_bits(self.seed, DELTA_STREAM, counter) & ((1 << segment.shift) - 1)
            parts.append((change.ravel() + bits) >> segment.shift)
        return np.clip(np.concatenate(parts), -INT32_MAX, INT32_MAX)

    def _is_int8(self, tensor: str) -> bool:
        layer, kind = tensor.rsplit(".", 1)
        return kind == "weight" and layer != self.graph.head.name

    def _run(self, phase: str) -> None:
        for step in self.program.phase(phase):
            for call in step.calls():
                self._kernels[call.kernel](call)

    # Forward.

    def _tensor(self, name: str) -> Tensor:
        return self.graph.tensors[name]

    def _store(self, step: Step, values: Ints) -> None:
        clamped = np.clip(values, -128, 127)
        self.arrays[step.buffers["output"]] = clamped
        if "mask" in step.buffers:
            self.arrays[step.buffers["mask"]] = (clamped == values).astype(np.int64)

    def _padded(self, op: Conv | DepthwiseConv, step: Step) -> Ints:
        pad = op.padding
        shifted = self.arrays[step.buffers["input"]] - self._tensor(op.input).zero_point
        return np.pad(shifted, ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0)))

    def _taps(self, op: Conv | DepthwiseConv) -> list[tuple[int, int, tuple[slice, slice]]]:
        """Kernel row, column, and the padded input positions that the tap sees."""
        rows, columns = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
        height, width, _ = self._tensor(op.output).shape
        return [
            (
                row,
                column,
                (
                    slice(row, row + (height - 1) * op.stride[0] + 1, op.stride[0]),
                    slice(column, column + (width - 1) * op.stride[1] + 1, op.stride[1]),
                ),
            )
            for row in range(rows)
            for column in range(columns)
        ]

    def _requantize(self, step: Step, op: Conv | DepthwiseConv, sums: Ints) -> None:
        constants = convolution_arithmetic(self.graph, op)
        word = np.array([m.word for m in constants.requantize])
        shift = np.array([m.shift for m in constants.requantize])
        total = sums + self.tensors[f"{op.name}.bias"]
        total = total << constants.pre_shift
        assert np.abs(total).max() <= INT32_MAX, f"{op.name}: accumulator overflow"
        high = (total * word) >> 32
        scaled = (high + (1 << (shift - 1))) >> shift
        self._store(step, scaled + self._tensor(op.output).zero_point)

    def _convolution_forward(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Conv)
        source, weight = self._padded(op, step), self.tensors[f"{op.name}.weight"]
        sums = sum(source[window] @ weight[:, row, col].T for row, col, window in self._taps(op))
        self._requantize(step, op, np.asarray(sums))

    def _depthwise_forward(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, DepthwiseConv)
        source, weight = self._padded(op, step), self.tensors[f"{op.name}.weight"]
        sums = sum(source[window] * weight[row, col] for row, col, window in self._taps(op))
        self._requantize(step, op, np.asarray(sums))

    def _add_forward(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Add)
        constants = addition_arithmetic(self.graph, op)
        a = self.arrays[step.buffers["a"]] - self._tensor(op.inputs[0]).zero_point
        b = self.arrays[step.buffers["b"]] - self._tensor(op.inputs[1]).zero_point
        total = a * constants.a_multiplier + b * constants.b_multiplier
        zero = self._tensor(op.output).zero_point
        self._store(step, round_shift(total, constants.shift) + zero)

    def _pool_forward(self, step: Step) -> None:
        source = self.arrays[step.buffers["input"]]
        pixels = source.shape[0] * source.shape[1]
        raised = source.sum(axis=(0, 1)) + 128 * pixels
        mean = raised // pixels
        rest = 2 * (raised - mean * pixels)
        up = (rest > pixels) | ((rest == pixels) & (mean % 2 == 1))
        self.arrays[step.buffers["output"]] = (mean + up - 128)[None, None, :]

    def _head_forward(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        source = self.arrays[step.buffers["input"]].ravel() - self._tensor(op.input).zero_point
        total = self.tensors[f"{op.name}.weight"] @ source + self.tensors[f"{op.name}.bias"]
        self.logits = np.clip(total, -INT32_MAX, INT32_MAX)

    def _cross_entropy(self, step: Step) -> None:
        gain = head_arithmetic(self.graph).loss
        below = [int(d) for d in self.logits.max() - self.logits]
        distance = np.array(
            [
                min(
                    d * gain.mantissa >> -gain.exponent
                    if gain.exponent <= 0
                    else d * gain.mantissa << gain.exponent,
                    LARGEST_DISTANCE,
                )
                for d in below
            ]
        )
        fraction = distance & 0xFFFF
        entry = fraction >> 10
        drop = EXP2_TABLE[entry] - EXP2_TABLE[entry + 1]
        powers = (EXP2_TABLE[entry] - ((drop * (fraction & 1023)) >> 10)) >> (distance >> 16)
        total = int(powers.sum())
        values = np.array([(int(p) << 30) // total for p in powers])
        values[self.label] -= 1 << 30
        shift = int(np.abs(values).max()).bit_length() - 15
        error = Error(_saturate_error(round_shift(values, shift)), shift - 30)
        self.errors = {step.buffers["error"]: error}
        length = total.bit_length()
        mantissa = total >> (length - 31) if length > 31 else total << (31 - length)
        rest = mantissa & ((1 << 30) - 1)
        entry0 = rest >> 24
        slope = int(LOG2_TABLE[entry0 + 1] - LOG2_TABLE[entry0])
        log2 = ((length - 1) << 16) + int(LOG2_TABLE[entry0]) + (slope * (rest >> 8 & 0xFFFF) >> 16)
        bits = int(distance[self.label]) + log2 - (30 << 16)
        self.loss_q16 = 0 if bits <= 0 else bits * LN2_Q16 >> 16

    # Backward: errors.

    def _head_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        constants = head_arithmetic(self.graph)
        error = self.errors[step.buffers["error"]]
        sums = error.codes @ self.tensors[f"{op.name}.weight"] * constants.error_multiplier
        shift = int(np.abs(sums).max()).bit_length() - 15
        exponent = error.exponent + constants.error_exponent - 15 + shift
        codes = _saturate_error(round_shift(sums, shift))
        self.errors[step.buffers["out"]] = Error(codes[None, None, :], exponent)

    def _pool_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, GlobalAveragePool)
        constants = pooling_arithmetic(self.graph, op)
        error = self.errors[step.buffers["error"]]
        codes = round_shift(error.codes * constants.error_multiplier, 14)
        spread = np.broadcast_to(codes, self._tensor(op.input).shape).copy()
        exponent = error.exponent + constants.error_exponent
        self.errors[step.buffers["out"]] = Error(spread, exponent)

    def _error_mask(self, step: Step) -> None:
        error = self.errors[step.buffers["error"]]
        error.codes = error.codes * self.arrays[step.buffers["mask"]]

    def _error_scale(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Add)
        constants = addition_arithmetic(self.graph, op)
        first = step.operand == 0
        factor = constants.a_error_multiplier if first else constants.b_error_multiplier
        power = constants.a_error_exponent if first else constants.b_error_exponent
        error = self.errors[step.buffers["error"]]
        codes = round_shift(error.codes * factor, 15 - error.headroom)
        exponent = error.exponent + power - error.headroom
        self.errors[step.buffers["out"]] = Error(codes, exponent)

    def _error_sum(self, step: Step) -> None:
        a, b = self.errors[step.buffers["a"]], self.errors[step.buffers["b"]]
        if b.magnitude == 0:
            return
        tops = [e.exponent + e.magnitude.bit_length() for e in (a, b) if e.magnitude > 0]
        exponent = max(tops) + 1 - 15

        def moved(error: Error) -> Ints:
            if error.magnitude == 0:
                return error.codes
            shift = exponent - error.exponent
            return np.zeros_like(error.codes) if shift > 30 else round_shift(error.codes, shift)

        self.errors[step.buffers["a"]] = Error(_saturate_error(moved(a) + moved(b)), exponent)

    def _spread(self, op: Conv | DepthwiseConv, parts: list[Ints]) -> Ints:
        """Adds the part of each tap to the input positions that the tap saw."""
        height, width, channels = self._tensor(op.input).shape
        pad = op.padding
        padded = np.zeros(
            (height + pad.top + pad.bottom, width + pad.left + pad.right, channels), np.int64
        )
        for (_, _, window), part in zip(self._taps(op), parts, strict=True):
            padded[window] += part
        return padded[pad.top : pad.top + height, pad.left : pad.left + width]

    def _convolution_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Conv)
        constants = convolution_arithmetic(self.graph, op)
        error = self.errors[step.buffers["error"]]
        left = error.headroom - constants.error_headroom
        scaled = round_shift(error.codes * constants.error_multiplier, 15 - left)
        weight = self.tensors[f"{op.name}.weight"]
        sums = self._spread(op, [scaled @ weight[:, row, col] for row, col, _ in self._taps(op)])
        codes = _saturate_error(round_shift(sums, constants.error_shift))
        exponent = error.exponent + constants.error_exponent - left + constants.error_shift
        self.errors[step.buffers["out"]] = Error(codes, exponent)

    def _depthwise_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, DepthwiseConv)
        constants = convolution_arithmetic(self.graph, op)
        error = self.errors[step.buffers["error"]]
        left = error.headroom
        weight = self.tensors[f"{op.name}.weight"]
        parts = [error.codes * weight[row, col] for row, col, _ in self._taps(op)]
        sums = self._spread(op, parts) * constants.error_multiplier
        codes = _saturate_error(round_shift(sums, 15 + constants.error_shift - left))
        exponent = error.exponent + constants.error_exponent - left + constants.error_shift
        self.errors[step.buffers["out"]] = Error(codes, exponent)

    # Backward: updates.

    def _head_update(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        constants = head_arithmetic(self.graph)
        error = self.errors[step.buffers["error"]]
        source = self.arrays[step.buffers["input"]].ravel() - self._tensor(op.input).zero_point
        gradient = np.outer(error.codes, source)
        self.gradients[f"{op.name}.weight"] = (gradient, error.exponent)
        self.gradients[f"{op.name}.bias"] = (error.codes, error.exponent)
        rate = self.learning_rate_q20
        for kind, part, gain, bits, limit in (
            ("weight", gradient, constants.weight_gain, STATE_BITS, blob.Q88_LIMIT),
            ("bias", error.codes, constants.bias_gain, BIAS_BITS, INT32_MAX),
        ):
            name = f"{op.name}.{kind}"
            change = apply_gain(part, step_gain(gain, rate), error.exponent + bits)
            moved = self.tensors[name] + self._rounded(name, change, bits)
            self.tensors[name] = np.clip(moved, -limit, limit)

    def _rounded(self, tensor: str, change: Ints, bits: int) -> Ints:
        """How far the values of ``tensor`` move for ``change``.

        Where the plan keeps velocities, that is for the velocity that ``change`` was added to, and
        only with the last sample of a batch.
        """
        segment = self.program.segment_of(tensor)
        assert segment is not None
        plan = self.program.plan
        if plan.keeps_velocity:
            velocity = self.velocities.get(tensor, np.zeros_like(change)) + change
            change = np.clip(velocity, -INT32_MAX, INT32_MAX)
            apply = self.step_index % plan.accumulate == plan.accumulate - 1
            self.velocities[tensor] = change * plan.momentum_q8 >> 8 if apply else change
            if not apply:
                return np.zeros_like(change)
        return random_move(change, bits, self.seed, self.step_index, segment.first_value)

    def _bias_update(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, (Conv, DepthwiseConv))
        constants = convolution_arithmetic(self.graph, op)
        error = self.errors[step.buffers["error"]]
        gradient = error.codes.sum(axis=(0, 1))
        self.gradients[f"{op.name}.bias"] = (gradient, error.exponent)
        name = f"{op.name}.bias"
        exponent = error.exponent + BIAS_BITS
        change = np.zeros_like(gradient)
        for o, gain in enumerate(constants.bias_gain):
            step_size = step_gain(gain, self.learning_rate_q20)
            change[o] = apply_gain(gradient[o : o + 1], step_size, exponent)[0]
        moved = self.tensors[name] + self._rounded(name, change, BIAS_BITS)
        self.tensors[name] = np.clip(moved, -constants.bias_limit, constants.bias_limit)

    def _convolution_weight_update(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Conv)
        error = self.errors[step.buffers["error"]].codes
        source = self._padded(op, step)
        taps = [
            np.tensordot(error, source[window], axes=((0, 1), (0, 1)))
            for _, _, window in self._taps(op)
        ]
        gradient = np.stack(taps, axis=1).reshape(op.weight.shape)
        self._update(step, op, gradient, channel_axis=0)

    def _depthwise_weight_update(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, DepthwiseConv)
        error = self.errors[step.buffers["error"]].codes
        source = self._padded(op, step)
        taps = [(error * source[window]).sum(axis=(0, 1)) for _, _, window in self._taps(op)]
        self._update(step, op, np.stack(taps).reshape(op.weight.shape), channel_axis=2)

    def _update(
        self, step: Step, op: Conv | DepthwiseConv, gradient: Ints, channel_axis: int
    ) -> None:
        constants = convolution_arithmetic(self.graph, op)
        name = f"{op.name}.weight"
        segment = self.program.segment_of(name)
        assert segment is not None
        trained = np.s_[..., list(segment.channels)]
        exponent = self.errors[step.buffers["error"]].exponent + constants.gradient_shift
        if constants.gradient_shift > 0:
            gradient = round_shift(gradient, constants.gradient_shift)
        self.gradients[name] = (gradient, exponent)
        exact = name in self.fractions
        bits = 8 + STATE_BITS if exact else STEP_BITS
        change = np.zeros_like(gradient)
        for o, gain in enumerate(constants.weight_gain):
            where = tuple(
                slice(None) if axis != channel_axis else o for axis in range(gradient.ndim)
            )
            step_size = step_gain(gain, self.learning_rate_q20)
            change[where] = apply_gain(gradient[where], step_size, exponent + bits)
        weight, change = self.tensors[name][trained], change[trained]
        if exact:
            state = weight * 256 + self.fractions[name] + self._rounded(name, change, STATE_BITS)
            state = np.clip(state, -blob.Q88_LIMIT, blob.Q88_LIMIT)
            weight = (state + 128) >> 8
            self.fractions[name] = state - weight * 256
        else:
            weight = np.clip(weight + self._rounded(name, change, STEP_BITS), -127, 127)
        self.tensors[name][trained] = weight
