"""Instructions of a training step, estimated from its program: no image is linked or run.

Each kernel's instructions are taken to be linear in what it goes through (``work_of``). The
rates were fitted to programs that were counted in emulation, step by step (Cortex-M7, GCC 12.2):
``python -m benchmarks.instructions`` fits them again, and prints how far off they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from codegen.graph.ir import Conv, DepthwiseConv, Head, inputs_of
from codegen.program.steps import Program, Step


@dataclass(frozen=True)
class Work:
    """What a kernel call goes through.

    ``macs``: multiply-accumulates. ``elements``: of the tensors that it reads and writes.
    ``gathered``: codes or errors that are brought together from a window before they are
    multiplied. ``values``: biases and weights that are trained, or, where only a part of a
    layer's weights is trained, put together from state and flash; weights of depthwise layers.
    """

    macs: int = 0
    elements: int = 0
    gathered: int = 0
    values: int = 0


@dataclass(frozen=True)
class Rates:
    """Instructions per unit of ``Work``."""

    macs: float = 0.0
    elements: float = 0.0
    gathered: float = 0.0
    values: float = 0.0

    def of(self, work: Work) -> float:
        """Instructions of ``work``."""
        return (
            self.macs * work.macs
            + self.elements * work.elements
            + self.gathered * work.gathered
            + self.values * work.values
        )


RATES: Mapping[str, Rates] = MappingProxyType(
    {
        "add_forward": Rates(elements=5.48),
        "average_pool_forward": Rates(elements=15.85),
        "average_pool_input_gradient": Rates(elements=21.86),
        "bias_update": Rates(elements=1.88, values=84.55),
        "binary_cross_entropy": Rates(elements=361.5),
        "concat_forward": Rates(elements=0.69),
        "concat_input_gradient": Rates(elements=4.54),
        "convolution_forward": Rates(macs=0.74, elements=2.8, gathered=3.12, values=2.5),
        "convolution_input_gradient": Rates(macs=0.69, elements=4.2, gathered=11.71, values=2.9),
        "convolution_weight_update": Rates(macs=1.05, elements=1.71, gathered=11.34, values=60.52),
        "cross_entropy": Rates(elements=348.58),
        "depthwise_forward": Rates(macs=0.71, elements=5.63, values=19.32),
        "depthwise_input_gradient": Rates(macs=0.24, elements=11.56, values=27.6),
        "depthwise_weight_update": Rates(macs=0.88, elements=11.89, values=143.44),
        "error_mask": Rates(elements=4.97),
        "error_scale": Rates(elements=3.14),
        "error_sum": Rates(elements=7.93),
        "expand_forward": Rates(elements=1.9),
        "expand_input_gradient": Rates(elements=12.1),
        "gather_forward": Rates(elements=2.0),
        "gather_input_gradient": Rates(elements=3.0),
        "head_forward": Rates(macs=2.5, elements=33.89),
        "head_input_gradient": Rates(macs=5, elements=104.69),
        "head_update": Rates(macs=37, elements=143.01),
        "keep_channels": Rates(elements=5.65),
        "lookup_forward": Rates(elements=2.25),
        "lookup_input_gradient": Rates(elements=4.26),
        "max_pool_forward": Rates(elements=16.82),
        "max_pool_input_gradient": Rates(elements=14.1),
        "mean_squared_error": Rates(elements=112.19),
        "pool_forward": Rates(elements=6.82),
        "pool_input_gradient": Rates(elements=7.44),
        "product_forward": Rates(elements=16.4),
        "product_input_gradient": Rates(elements=10.5),
        "product_reduced_gradient": Rates(elements=13.0),
        "rearrange_forward": Rates(elements=1.83),
        "rearrange_input_gradient": Rates(elements=7.2),
        "requantize_forward": Rates(elements=13.68),
        "scaling_forward": Rates(elements=14.3),
        "scaling_input_gradient": Rates(elements=9.6),
    }
)
"""By kernel."""


def work_of(program: Program, call: Step) -> Work:
    """What ``call``, a step of ``program`` or a stage of one, goes through."""
    graph, op = program.graph, call.op
    if isinstance(op, Head):
        backward = call.kernel == "head_input_gradient"
        return Work(macs=call.macs, elements=op.weight.shape[1 if backward else 0])
    source = graph.tensors[inputs_of(op)[call.operand]].size
    output = graph.tensors[op.output].size
    match call.kernel:
        case "keep_channels":
            segment = program.segment_of(f"{op.name}.weight")
            assert segment is not None
            return Work(elements=source // graph.tensors[inputs_of(op)[0]].shape[2] * segment.count)
        case "error_mask":
            return Work(elements=output)
        case "bias_update":
            return Work(elements=output, values=graph.tensors[op.output].shape[-1])
        case "error_sum":
            return Work(elements=source)
    if isinstance(op, Conv | DepthwiseConv):
        return _of_convolution(program, call, op, source + output)
    return Work(elements=source + output)


def _of_convolution(program: Program, call: Step, op: Conv | DepthwiseConv, elements: int) -> Work:
    trained = program.segment_of(f"{op.name}.weight")
    if isinstance(op, DepthwiseConv):
        if call.kernel != "depthwise_weight_update":
            return Work(call.macs, elements, values=op.weight.size)
        assert trained is not None
        part = elements * trained.count // op.weight.shape[-1]
        return Work(call.macs, part, values=trained.values)
    channels, height, width, _ = op.weight.shape
    gathered = 0 if height == width == 1 else program.graph.tensors[op.output].size // channels
    gathered *= op.weight[0].size
    values = op.weight.size  # every weight is widened
    if call.kernel == "convolution_weight_update":
        assert trained is not None
        values = trained.values
    return Work(call.macs, elements, gathered, values)


def instructions_of(program: Program, step: Step) -> float:
    """Instructions of one step of ``program``, about."""
    return sum(RATES[call.kernel].of(work_of(program, call)) for call in step.calls())


def estimated_instructions(program: Program) -> int:
    """Instructions of one training step of ``program`` on one sample.

    Within 3 % of what is counted for MCUNet with plan 49kb and within 20 % for the digits, whose
    pictures of 8 by 8 leave more to the calls: tests hold that.
    """
    return round(sum(instructions_of(program, step) for step in program.steps))
