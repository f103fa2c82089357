"""The steps of a program, operation by operation: forward calls, the loss, gradients.

Operations without weights add theirs themselves (`codegen.operators`). Nothing is decided here
about memory: each part of a program says which buffers it makes, of what size, and which older ones
they may overlap. ``codegen.program.lowering`` puts the parts together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from codegen.graph.ir import (
    Conv,
    DepthwiseConv,
    Ending,
    Graph,
    Head,
    Loss,
    Op,
    Operation,
    Tensor,
    TensorOutput,
    inputs_of,
)
from codegen.operators import operator_of
from codegen.program import scratch, streaming
from codegen.program.memory_plan import ALIGNMENT, Overlap
from codegen.program.plans import Plan
from codegen.program.scratch import round_up
from codegen.program.steps import INPUT, KEEP, LEAST_AT_ONCE, SCALE_BYTES, SCALES, Phase, Step

Parameterized = Conv | DepthwiseConv

_LOSS_KERNELS: Mapping[Loss, str] = MappingProxyType(
    {
        "cross-entropy": "cross_entropy",
        "binary": "binary_cross_entropy",
        "mse": "mean_squared_error",
    }
)

CODED_LOSS = "coded_squared_error"
"""That of outputs that are a tensor's codes."""


@dataclass
class Part:
    """Steps in order, and the buffers of the arena that they make.

    ``sizes`` has the buffers' bytes; ``over`` where a buffer may lie over older ones, if these
    aren't needed after the step that makes it.
    """

    steps: list[Step] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    over: dict[str, dict[str, Overlap]] = field(default_factory=dict)

    def buffer(self, name: str, size: int) -> str:
        """Makes a buffer; returns its name."""
        self.sizes[name] = size
        return name

    def may_overlap(self, new: str, old: str, overlap: Overlap) -> None:
        """Allows ``new`` to lie over ``old``, unless that is the sample: others read it as well."""
        if old != INPUT:
            self.over.setdefault(new, {})[old] = overlap


IN_PLACE = Overlap(0, exact=True)


def activation_buffer(graph: Graph, tensor: str) -> str:
    """Name of the buffer that holds ``tensor``."""
    return INPUT if tensor == graph.input else f"activation {tensor}"


def _at_once(output: Tensor) -> int:
    """The fewest pixels for which weights are widened: it takes as long as one block gains."""
    pixels = output.shape[0] * output.shape[1]
    return min(2 * LEAST_AT_ONCE, round_up(pixels, LEAST_AT_ONCE))


def _over_error_of_depthwise(source: Tensor, output: Tensor) -> Overlap | None:
    """Both end in the same place, or begin there: a channel lies on itself."""
    lead = 2 * max(0, source.size - output.size)
    return None if lead % ALIGNMENT else Overlap(lead, exact=True)


def _tensors_that_need_errors(graph: Graph, trained: Iterable[str]) -> set[str]:
    """Tensors whose error some trained value depends on: backward stops at the others."""
    needed: set[str] = set()
    wanted = set(trained)
    for op in graph.ops:
        if isinstance(op, Ending):
            continue
        own = {f"{op.name}.weight", f"{op.name}.bias"} & wanted
        if own or any(name in needed for name in inputs_of(op)):
            needed.add(op.output)
    return needed


class StepBuilder:
    """Makes the parts of the program that trains ``graph`` by ``plan``, only what it needs."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        trained_channels: Mapping[str, int],
        *,
        keeps_part: bool = False,
    ) -> None:
        """``trained_channels`` has the number of trained channels by the tensor's name.

        ``keeps_part``: of a layer's input, only the channels whose weights are trained wait for
        their update, in a copy.
        """
        self.keeps_part = keeps_part
        self.graph = graph
        self.plan = plan
        self.trained_channels = trained_channels
        self.needs_error = _tensors_that_need_errors(graph, trained_channels)
        self.error_index: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._part = Part()

    def forward(self) -> list[Part]:
        """One part for each operation, in order."""
        parts = []
        for op in self.graph.ops:
            self._part = Part()
            self._forward_op(op)
            parts.append(self._part)
        return parts

    def loss_and_backward(self) -> Part:
        """The rest of the program; fills ``error_index``."""
        self._part = Part()
        if self.graph.ending.loss != "none":
            self._loss()
            self._backward()
            self.buffer(SCALES, SCALE_BYTES * len(self.error_index))
        return self._part

    # What operations make their steps with.

    def buffer(self, name: str, size: int) -> str:
        """Makes a buffer of ``size`` bytes; returns its name."""
        return self._part.buffer(name, size)

    def may_overlap(self, new: str, old: str, lead: int) -> None:
        """Allows ``new`` to lie over ``old`` where that ends: see `Overlap`."""
        self._part.may_overlap(new, old, Overlap(lead))

    def error(self, op: Parameterized | Operation) -> dict[str, str]:
        """The operand that is the error of the output of ``op``."""
        return {"error": self._errors[op.output]}

    def masked(self, op: Parameterized | Operation) -> dict[str, str]:
        """The same after a step that clears it where the clamp has changed a code."""
        error = self.error(op)
        self.step("backward", "error_mask", op, {**error, "mask": f"mask {op.output}"})
        return error

    def step(
        self,
        phase: Phase,
        kernel: str,
        op: Op,
        buffers: dict[str, str],
        *,
        macs: int = 0,
        operand: int = 0,
        at_once: int = 0,
    ) -> None:
        """Adds a step of ``kernel`` with its operands in ``buffers``."""
        self._part.steps.append(
            Step(
                name=f"{kernel}_{op.name}",
                phase=phase,
                kernel=kernel,
                op=op,
                buffers=MappingProxyType(buffers),
                operand=operand,
                macs=macs,
                at_once=at_once,
            )
        )

    def activation(self, tensor: str) -> str:
        """The buffer that holds ``tensor``."""
        return activation_buffer(self.graph, tensor)

    def _macs(self, op: Parameterized) -> int:
        height, width, _ = self.graph.tensors[op.output].shape
        return height * width * op.weight.size

    def _partly_trained(self, op: Parameterized) -> int:
        """Trained channels of the weights; 0 where none are, or all: those are used as they are."""
        count = self.trained_channels.get(f"{op.name}.weight", 0)
        return 0 if count == op.weight.shape[-1] else count

    # Forward: every op once, masks where an error will pass through.

    def _forward_op(self, op: Op) -> None:
        if isinstance(op, Head):
            buffers = {"input": self.activation(op.input)}
            self.step("forward", "head_forward", op, buffers, macs=op.weight.size)
            return
        if isinstance(op, TensorOutput):
            return
        output = self.graph.tensors[op.output]
        buffers = {"output": self.buffer(self.activation(op.output), output.size)}
        if op.output in self.needs_error and self._saturates(op):
            buffers["mask"] = self.buffer(f"mask {op.output}", -(-output.size // 8))
        match op:
            case Conv():
                self._convolution_forward(op, buffers)
            case DepthwiseConv():
                self._depthwise_forward(op, buffers)
            case _:
                operator_of(op).build_forward(self, op, buffers)

    def _read(self, op: Parameterized, buffers: dict[str, str]) -> None:
        """Puts the input into ``buffers``; copies what the update needs of it, if not all waits."""
        buffers["input"] = self.activation(op.input)
        kept = self._kept(op)
        if kept is not None:
            source = self.graph.tensors[op.input]
            count = self.trained_channels[f"{op.name}.weight"]
            size = source.size // source.shape[2] * count
            operands = {"input": buffers["input"], "output": self.buffer(kept, size)}
            self.step("forward", KEEP, op, operands)

    def _kept(self, op: Parameterized) -> str | None:
        """The buffer of the trained channels of the input, where no more of it is kept."""
        part = self.keeps_part and self._partly_trained(op) and op.input != self.graph.input
        return f"kept {op.name}" if part else None

    def _convolution_forward(self, op: Conv, buffers: dict[str, str]) -> None:
        source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
        self._read(op, buffers)
        at_once = _at_once(output)
        size = scratch.convolution_forward_bytes(op, source, output, at_once)
        buffers["scratch"] = self.buffer(f"columns {op.name}", size)
        lead = streaming.convolution_lead(self.graph, op)
        self.may_overlap(buffers["output"], buffers["input"], lead)
        kernel, macs = "convolution_forward", self._macs(op)
        self.step("forward", kernel, op, buffers, macs=macs, at_once=at_once)

    def _depthwise_forward(self, op: DepthwiseConv, buffers: dict[str, str]) -> None:
        source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
        self._read(op, buffers)
        size = scratch.depthwise_forward_bytes(op, source, output, output.shape[0])
        buffers["scratch"] = self.buffer(f"plane {op.name}", size)
        self._part.may_overlap(buffers["output"], buffers["input"], IN_PLACE)
        self.step("forward", "depthwise_forward", op, buffers, macs=self._macs(op))

    def _saturates(self, op: Parameterized | Operation) -> bool:
        """Whether codes of the output may be clamped, so that errors pass through a mask."""
        return isinstance(op, Parameterized) or operator_of(op).saturates(self.graph, op)

    def _loss(self) -> None:
        ending = self.graph.ending
        name, kernel, operands = "error logits", _LOSS_KERNELS[ending.loss], {}
        if isinstance(ending, TensorOutput):
            name, kernel = f"error {ending.input}", CODED_LOSS
            operands = {"input": self.activation(ending.input)}
            self._errors[ending.input] = name
        self.error_index[name] = len(self.error_index)
        error = self.buffer(name, 2 * ending.outputs)
        self.step("loss", kernel, ending, {**operands, "error": error})

    # Backward.

    def _backward(self) -> None:
        for op in reversed(self.graph.ops):
            if isinstance(op, Head):
                self._head_backward(op)
            elif isinstance(op, TensorOutput) or op.output not in self.needs_error:
                continue
            elif isinstance(op, Parameterized):
                self._convolution_backward(op)
            else:
                operator_of(op).build_backward(self, op)

    def propagate(
        self,
        kernel: str,
        op: Op,
        tensor: str,
        buffers: dict[str, str],
        *,
        macs: int = 0,
        operand: int = 0,
        at_once: int = 0,
        in_place: bool = False,
    ) -> str:
        """A step that sends an error to ``tensor``, added to what other consumers have sent.

        Made ``in_place``, it may lie exactly on the one that it is made from. Returns its buffer.
        """
        first = tensor not in self._errors
        name = f"error {tensor}" if first else f"error {tensor} from {op.name}"
        self.error_index[name] = len(self.error_index)
        target = self.buffer(name, 2 * self.graph.tensors[tensor].size)
        operands = {**buffers, "out": target}
        if in_place:
            self._part.may_overlap(target, buffers["error"], IN_PLACE)
        counts = {"macs": macs, "operand": operand, "at_once": at_once}
        self.step("backward", kernel, op, operands, **counts)
        if first:
            self._errors[tensor] = target
        else:
            both = {"a": self._errors[tensor], "b": target}
            self.step("backward", "error_sum", op, both, operand=operand)
        return target

    def _head_backward(self, op: Head) -> None:
        error = {"error": "error logits"}
        macs = op.weight.size
        if op.input in self.needs_error:
            self.propagate("head_input_gradient", op, op.input, error, macs=macs)
        if self.plan.head:
            buffers = {**error, "input": self.activation(op.input)}
            self.step("backward", "head_update", op, buffers, macs=macs)

    def _convolution_backward(self, op: Parameterized) -> None:
        error = self.masked(op)
        kind = "convolution" if isinstance(op, Conv) else "depthwise"
        if f"{op.name}.bias" in self.trained_channels:
            self.step("backward", "bias_update", op, error)
        # The input's error is due to the weights of the forward pass: it comes before their update.
        if op.input in self.needs_error:
            self._input_gradient(op, kind, error)
        count = self.trained_channels.get(f"{op.name}.weight", 0)
        if count:
            source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
            if isinstance(op, Conv):
                size = scratch.convolution_weight_update_bytes(op, source, output)
            else:
                size = scratch.depthwise_weight_update_bytes(op, source, output)
            buffers = {**error, "input": self._kept(op) or self.activation(op.input)}
            buffers["scratch"] = self.buffer(f"gradient columns {op.name}", size)
            macs = self._macs(op) * count // op.weight.shape[-1]
            self.step("backward", f"{kind}_weight_update", op, buffers, macs=macs)

    def _input_gradient(self, op: Parameterized, kind: str, error: dict[str, str]) -> None:
        source, output = self.graph.tensors[op.input], self.graph.tensors[op.output]
        over, at_once = None, 0
        if isinstance(op, Conv):
            at_once = _at_once(output)
            trained = self._partly_trained(op)
            size = scratch.convolution_input_gradient_bytes(op, source, output, trained, at_once)
            if streaming.is_pointwise(op):
                pixels = output.shape[0] * output.shape[1]
                over = Overlap(2 * max(0, source.shape[2] - output.shape[2]) * pixels)
        else:
            size = scratch.depthwise_input_gradient_bytes(op, source, output)
            over = _over_error_of_depthwise(source, output)
        name = self.buffer(f"error columns {op.name}", size)
        buffers = {**error, "scratch": name}
        kernel, macs = f"{kind}_input_gradient", self._macs(op)
        made = self.propagate(kernel, op, op.input, buffers, macs=macs, at_once=at_once)
        if over is not None:
            self._part.may_overlap(made, error["error"], over)
