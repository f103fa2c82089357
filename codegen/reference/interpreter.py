"""Slow, plain numpy oracle: runs a program with the device's arithmetic, bit for bit.

It knows nothing of arenas, kernels or C: every step is written from
docs/specification/arithmetic.md, over named arrays of int64. ``Interpreter`` mirrors
tf_engine_load, tf_engine_score, tf_engine_train_step and the delta of the C engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic import forward as integer_forward
from codegen.arithmetic.forward import Parameters, padded, taps
from codegen.arithmetic.integers import (
    BIAS_BITS,
    STATE_BITS,
    STEP_BITS,
    Error,
    Ints,
    apply_gain,
    random_bits,
    random_move,
    round_shift,
    step_gain,
)
from codegen.arithmetic.layers import (
    CODE_UNITS,
    INT32_MAX,
    Gain,
    TargetArithmetic,
    convolution_arithmetic,
    head_arithmetic,
    target_arithmetic,
)
from codegen.graph.ir import Conv, DepthwiseConv, Head, Operation, Tensor, TensorOutput
from codegen.operators import operator_of
from codegen.operators.execution import clamped
from codegen.program import blob
from codegen.program.step_builder import activation_buffer
from codegen.program.steps import INPUT, KEEP, Phase, Program, Step, Updates

EXP2_TABLE = np.array([round(2.0 ** (30 - i / 64)) for i in range(65)])
LOG2_TABLE = np.rint(2**16 * np.log2(1 + np.arange(65) / 64)).astype(np.int64)
LARGEST_DISTANCE = 31 << 16
LN2_Q16 = 45426
UINT32_MAX = 2**32 - 1
DELTA_STREAM = 0xFFFFFFFF


def _saturate_error(values: Ints) -> Ints:
    return np.clip(values, -32767, 32767)


def _distances(values: Ints, gain: Gain) -> Ints:
    """Of logits, in powers of two, Q16."""
    left, right = max(gain.exponent, 0), max(-gain.exponent, 0)
    exact = [int(d) * gain.mantissa << left >> right for d in values]
    return np.array([min(distance, LARGEST_DISTANCE) for distance in exact], np.int64)


def _powers(distances: Ints) -> Ints:
    """2^-distance in Q30."""
    fraction = distances & 0xFFFF
    entry = fraction >> 10
    drop = EXP2_TABLE[entry] - EXP2_TABLE[entry + 1]
    powers: Ints = (EXP2_TABLE[entry] - ((drop * (fraction & 1023)) >> 10)) >> (distances >> 16)
    return powers


def _log2(value: int) -> int:
    """In Q16."""
    length = value.bit_length()
    mantissa = value >> (length - 31) if length > 31 else value << (31 - length)
    rest = mantissa & ((1 << 30) - 1)
    entry = rest >> 24
    slope = int(LOG2_TABLE[entry + 1] - LOG2_TABLE[entry])
    return ((length - 1) << 16) + int(LOG2_TABLE[entry]) + (slope * (rest >> 8 & 0xFFFF) >> 16)


def binary_error(gain: Gain, logits: Ints, label: int) -> tuple[Ints, int, int]:
    """Error codes, their exponent, and the loss times 2^16; ``label`` has a bit per logit."""
    targets = label >> np.arange(len(logits)) & 1
    distance = _distances(np.abs(logits), gain)
    powers = _powers(distance)
    unlikely = (powers << 30) // ((1 << 30) + powers)
    probability = np.where(logits < 0, unlikely, (1 << 30) - unlikely)
    part = (2**20 + len(logits) // 2) // len(logits)
    exact = (probability - (targets << 30)) * part
    shift = int(np.abs(exact).max()).bit_length() - 15
    bits = sum(_log2((1 << 30) + int(power)) - (30 << 16) for power in powers)
    bits += int(distance[(logits < 0) == (targets == 1)].sum())
    loss = (bits * LN2_Q16 >> 16) // len(logits)
    return _saturate_error(round_shift(exact, shift)), shift - 50, loss


def squared_error(constants: TargetArithmetic, values: Ints, wanted: Ints) -> tuple[Ints, int, int]:
    """Error codes, their exponent, and the loss times 2^16.

    ``values`` are the outputs, codes of a tensor in 256ths; ``wanted`` the target's codes less
    their zero point.
    """
    exact = [int(w) * constants.target_scale.mantissa for w in wanted]
    in_units = [round_shift(value, -constants.target_scale.exponent) for value in exact]
    difference = np.clip(values - np.array(in_units), -INT32_MAX, INT32_MAX)
    scaled = [int(d) * constants.error_scale.mantissa for d in difference]
    shift = max(abs(value) for value in scaled).bit_length() - 15
    codes = np.clip([round_shift(value, shift) for value in scaled], -32767, 32767)
    exponent = constants.error_scale.exponent + shift
    squares = int((codes**2).sum())
    total, left = squares * len(codes), 2 * exponent - 2 + 16
    if constants.loss_scale is not None:
        dropped = max(squares.bit_length() - 40, 0)
        total = (squares >> dropped) * constants.loss_scale.mantissa
        left = 2 * exponent + constants.loss_scale.exponent + dropped + 16
    loss = total << left if left > 0 else total >> -left
    return codes.astype(np.int64), exponent, min(loss, UINT32_MAX)


class Interpreter:
    """One device's training engine."""

    def __init__(self, program: Program, weights: Mapping[str, Ints] | None = None) -> None:
        """``weights`` has tensors of other values than the graph's (``Blob.unpack``)."""
        self.program = program
        self.graph = program.graph
        self.loaded = {**blob.values_of(self.graph), **(weights or {})}
        self.tensors = {name: values.copy() for name, values in self.loaded.items()}
        self.fractions = {
            s.tensor: np.zeros(self._trained_shape(s.tensor, s.count), np.int64)
            for s in program.segments
            if s.fraction_offset is not None
        }
        self.velocities: dict[str, Ints] = {}
        self.arrays: dict[str, Ints] = {}
        self.errors: dict[str, Error] = {}
        self.logits = np.zeros(self.graph.ending.outputs, np.int64)
        """What the last forward pass has made: of outputs that are codes, less their zero point."""
        self.loss_q16 = 0
        self.label = 0
        self.targets = np.zeros(0, np.int64)
        self.learning_rate_q20 = 0
        self.seed = 0
        self.step_index = 0
        self.updates: Updates = "all"
        self.gradients: dict[str, tuple[Ints, int]] = {}
        """Tensor → (integer gradient, exponent) of the last step: with respect to output steps,
        before scaling; `codegen.reference.float_autodiff.cosines` compares them with exact ones."""
        self._kernels: dict[str, Callable[[Step], None]] = {
            KEEP: self._keep_channels,
            "convolution_forward": self._convolution_forward,
            "depthwise_forward": self._convolution_forward,
            "head_forward": self._head_forward,
            "cross_entropy": self._cross_entropy,
            "binary_cross_entropy": self._binary_cross_entropy,
            "mean_squared_error": self._mean_squared_error,
            "coded_squared_error": self._coded_squared_error,
            "head_input_gradient": self._head_input_gradient,
            "head_update": self._head_update,
            "error_mask": self._error_mask,
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
        """Forward and loss; returns the predicted class, or the bits of all outputs from 0 on.

        Outputs that are codes predict no class: 0.

        ``sample`` has the input's codes, and the bytes of targets behind them where the loss has
        any.
        """
        source, ending = self._tensor(self.graph.input), self.graph.ending
        codes, targets = np.split(sample.ravel(), [source.size])
        self.targets = np.frombuffer(targets.tobytes(), "<i2").astype(np.int64)
        self.arrays = {INPUT: codes.reshape(source.shape).astype(np.int64)}
        self.label = label
        self._run("forward")
        if isinstance(ending, TensorOutput):
            made = self.arrays[activation_buffer(self.graph, ending.input)]
            self.logits = made.ravel() - self._tensor(ending.input).zero_point
        self._run("loss")
        if isinstance(ending, TensorOutput):
            return 0
        if ending.loss == "binary":
            return int(((self.logits >= 0) << np.arange(self.logits.size)).sum())
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

    def kept(self, personal_only: bool) -> dict[str, tuple[Ints, Ints]]:
        """What a device keeps for itself: tensor → trained values and fractions."""
        segments = self.program.personal_segments if personal_only else self.program.segments
        return {
            one.tensor: (
                self.tensors[one.tensor][..., list(one.channels)].copy(),
                self.fractions.get(one.tensor, np.zeros(1, np.int64)).copy(),
            )
            for one in segments
        }

    def lay_over(self, kept: Mapping[str, tuple[Ints, Ints]], mix: int = 256) -> None:
        """Move values that were just loaded towards those that were kept, by ``mix`` 256ths."""
        for tensor, (values, fractions) in kept.items():
            segment = self.program.segment_of(tensor)
            assert segment is not None
            trained = np.s_[..., list(segment.channels)]
            unit = 256 if tensor in self.fractions else 1
            before = self.tensors[tensor][trained] * unit
            wanted = values * unit + (fractions if tensor in self.fractions else 0)
            mixed = before + round_shift((wanted - before) * mix, 8)
            whole = round_shift(mixed, 8) if tensor in self.fractions else mixed
            self.tensors[tensor][trained] = whole
            if tensor in self.fractions:
                self.fractions[tensor] = mixed - whole * 256

    def delta(self, *, keeps_personal: bool = False) -> Ints:
        """Values in plan order, in units of 2**shift state units.

        Without those of personal tensors where the device keeps them.
        """
        parts = []
        for segment in self.program.segments:
            if segment.personal and keeps_personal:
                continue
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
        return kind == "weight" and layer != self.graph.ending.name

    def _run(self, phase: Phase) -> None:
        for step in self.program.phase(phase):
            if self._stays(step):
                continue
            for call in step.calls():
                self._call(call)

    def _call(self, step: Step) -> None:
        own = operator_of(step.op).kernels if isinstance(step.op, Operation) else {}
        if step.kernel in own:
            own[step.kernel](self, step)
        else:
            self._kernels[step.kernel](step)

    def _stays(self, step: Step) -> bool:
        """Whether a step would change what isn't to be changed now."""
        if self.updates == "all" or not step.kernel.endswith("_update"):
            return False
        return self.program.updates_personal(step) != (self.updates == "personal")

    # What kernels of operations work with, beside arrays and errors.

    def error_in(self, step: Step) -> Error:
        """The error that ``step`` reads."""
        return self.errors[step.buffers["error"]]

    def store(self, step: Step, values: Ints) -> None:
        """Keeps ``values`` as codes, and where they were in range if the step has a mask."""
        codes = clamped(step.op, values)
        self.arrays[step.buffers["output"]] = codes
        if "mask" in step.buffers:
            self.arrays[step.buffers["mask"]] = (codes == values).astype(np.int64)

    # Forward.

    def _tensor(self, name: str) -> Tensor:
        return self.graph.tensors[name]

    def _parameters(self, op: Conv | DepthwiseConv | Head) -> Parameters:
        return Parameters(self.tensors[f"{op.name}.weight"], self.tensors[f"{op.name}.bias"])

    def _input(self, step: Step) -> Ints:
        return self.arrays[step.buffers["input"]]

    def _keep_channels(self, step: Step) -> None:
        """Keeps the others as well: gradients of all channels are for tests to see."""
        self.arrays[step.buffers["output"]] = self._input(step)

    def _convolution_forward(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, (Conv, DepthwiseConv))
        parameters = self._parameters(op)
        self.store(step, integer_forward.convolution(self.graph, op, self._input(step), parameters))

    def _head_forward(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        parameters = self._parameters(op)
        self.logits = integer_forward.head(self.graph, op, self._input(step), parameters)

    def _cross_entropy(self, step: Step) -> None:
        gain = head_arithmetic(self.graph).loss
        distance = _distances(self.logits.max() - self.logits, gain)
        powers = _powers(distance)
        total = int(powers.sum())
        values = np.array([(int(p) << 30) // total for p in powers])
        values[self.label] -= 1 << 30
        shift = int(np.abs(values).max()).bit_length() - 15
        error = Error(_saturate_error(round_shift(values, shift)), shift - 30)
        self.errors = {step.buffers["error"]: error}
        bits = int(distance[self.label]) + _log2(total) - (30 << 16)
        self.loss_q16 = 0 if bits <= 0 else bits * LN2_Q16 >> 16

    def _binary_cross_entropy(self, step: Step) -> None:
        codes, exponent, self.loss_q16 = binary_error(
            head_arithmetic(self.graph).loss, self.logits, self.label
        )
        self.errors = {step.buffers["error"]: Error(codes, exponent)}

    def _mean_squared_error(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        wanted = self.targets
        if op.reconstructs:
            wanted = self.arrays[INPUT].ravel() - self._tensor(self.graph.input).zero_point
        codes, exponent, self.loss_q16 = squared_error(
            target_arithmetic(self.graph, op), self.logits, wanted
        )
        self.errors = {step.buffers["error"]: Error(codes, exponent)}

    def _coded_squared_error(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, TensorOutput)
        wanted = self.arrays[INPUT].ravel() - self._tensor(self.graph.input).zero_point
        codes, exponent, self.loss_q16 = squared_error(
            target_arithmetic(self.graph, op), self.logits * CODE_UNITS, wanted
        )
        shaped = codes.reshape(self._tensor(op.input).shape)
        self.errors = {step.buffers["error"]: Error(shaped, exponent)}

    # Backward: errors.

    def _head_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        constants = head_arithmetic(self.graph)
        error = self.error_in(step)
        sums = error.codes @ self.tensors[f"{op.name}.weight"] * constants.error_multiplier
        shift = int(np.abs(sums).max()).bit_length() - 15
        exponent = error.exponent + constants.error_exponent - 15 + shift
        codes = _saturate_error(round_shift(sums, shift))
        shaped = codes.reshape(self._tensor(op.input).shape)
        self.errors[step.buffers["out"]] = Error(shaped, exponent)

    def _error_mask(self, step: Step) -> None:
        error = self.error_in(step)
        error.codes = error.codes * self.arrays[step.buffers["mask"]]

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
        result = np.zeros(
            (height + pad.top + pad.bottom, width + pad.left + pad.right, channels), np.int64
        )
        for (_, _, window), part in zip(taps(self.graph, op), parts, strict=True):
            result[window] += part
        return result[pad.top : pad.top + height, pad.left : pad.left + width]

    def _convolution_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Conv)
        constants = convolution_arithmetic(self.graph, op)
        error = self.error_in(step)
        left = error.headroom - constants.error_headroom
        scaled = round_shift(error.codes * constants.error_multiplier, 15 - left)
        weight = self.tensors[f"{op.name}.weight"]
        sums = self._spread(
            op, [scaled @ weight[:, row, col] for row, col, _ in taps(self.graph, op)]
        )
        codes = _saturate_error(round_shift(sums, constants.error_shift))
        exponent = error.exponent + constants.error_exponent - left + constants.error_shift
        self.errors[step.buffers["out"]] = Error(codes, exponent)

    def _depthwise_input_gradient(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, DepthwiseConv)
        constants = convolution_arithmetic(self.graph, op)
        error = self.error_in(step)
        left = error.headroom
        weight = self.tensors[f"{op.name}.weight"]
        parts = [error.codes * weight[row, col] for row, col, _ in taps(self.graph, op)]
        sums = self._spread(op, parts) * constants.error_multiplier
        codes = _saturate_error(round_shift(sums, 15 + constants.error_shift - left))
        exponent = error.exponent + constants.error_exponent - left + constants.error_shift
        self.errors[step.buffers["out"]] = Error(codes, exponent)

    # Backward: updates.

    def _head_update(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Head)
        constants = head_arithmetic(self.graph)
        error = self.error_in(step)
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
        error = self.error_in(step)
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
        error = self.error_in(step).codes
        source = padded(self.graph, op, self._input(step))
        parts = [
            np.tensordot(error, source[window], axes=((0, 1), (0, 1)))
            for _, _, window in taps(self.graph, op)
        ]
        gradient = np.stack(parts, axis=1).reshape(op.weight.shape)
        self._update(step, op, gradient, channel_axis=0)

    def _depthwise_weight_update(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, DepthwiseConv)
        error = self.error_in(step).codes
        source = padded(self.graph, op, self._input(step))
        parts = [(error * source[window]).sum(axis=(0, 1)) for _, _, window in taps(self.graph, op)]
        self._update(step, op, np.stack(parts).reshape(op.weight.shape), channel_axis=2)

    def _update(
        self, step: Step, op: Conv | DepthwiseConv, gradient: Ints, channel_axis: int
    ) -> None:
        constants = convolution_arithmetic(self.graph, op)
        name = f"{op.name}.weight"
        segment = self.program.segment_of(name)
        assert segment is not None
        trained = np.s_[..., list(segment.channels)]
        exponent = self.error_in(step).exponent + constants.gradient_shift
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
