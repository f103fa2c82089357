"""Instructions of a training step, estimated from its program: no image is linked or run.

Each kernel's instructions are taken to be linear in what it goes through (``work_of``). The
rates were fitted to programs that were counted in emulation, step by step (Cortex-M7, GCC 12.2):
``python -m benchmarks.instructions`` fits them again, and prints how far off they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from codegen.graph.ir import Conv, DepthwiseConv, Head, TensorOutput, inputs_of
from codegen.operators.layer_normalization import LayerNormalization
from codegen.program.steps import Program, Step


@dataclass(frozen=True)
class Work:
    """What a kernel call goes through.

    ``macs``: multiply-accumulates. ``elements``: of the tensors that it reads and writes.
    ``gathered``: codes or errors that are brought together from a window before they are
    multiplied. ``values``: biases and weights that are trained, or, where only a part of a
    layer's weights is trained, put together from state and flash; weights of depthwise layers;
    groups that are normalized.
    ``calls``: of the kernel; rows of a chain are one.
    """

    macs: int = 0
    elements: int = 0
    gathered: int = 0
    values: int = 0
    calls: int = 1


@dataclass(frozen=True)
class Rates:
    """Instructions per unit of ``Work``."""

    macs: float = 0.0
    elements: float = 0.0
    gathered: float = 0.0
    values: float = 0.0
    calls: float = 0.0

    def of(self, work: Work) -> float:
        """Instructions of ``work``."""
        return (
            self.macs * work.macs
            + self.elements * work.elements
            + self.gathered * work.gathered
            + self.values * work.values
            + self.calls * work.calls
        )


RATES: Mapping[str, Rates] = MappingProxyType(
    {
        "add_forward": Rates(elements=5.47, calls=2158.25),
        "average_pool_forward": Rates(elements=15.18, calls=3348.83),
        "average_pool_input_gradient": Rates(elements=25.11),
        "bias_update": Rates(elements=1.88, values=84.56),
        "binary_cross_entropy": Rates(elements=450.06),
        "coded_squared_error": Rates(elements=119.4),
        "concat_forward": Rates(elements=0.69),
        "concat_input_gradient": Rates(elements=4.5),
        "convolution_forward": Rates(
            macs=0.76, elements=3.09, gathered=3.32, values=0.62, calls=3826.38
        ),
        "convolution_input_gradient": Rates(
            macs=0.73, elements=5.55, gathered=12.04, values=1.42, calls=1869.23
        ),
        "convolution_weight_update": Rates(
            macs=1.07, elements=2.02, gathered=10.33, values=58.35, calls=5298.13
        ),
        "cross_entropy": Rates(elements=372.76),
        "depthwise_forward": Rates(macs=0.82, elements=4.63, values=12.28, calls=30271),
        "depthwise_input_gradient": Rates(macs=0.45, elements=8.98, values=17.65, calls=29317.3),
        "depthwise_weight_update": Rates(macs=0.29, elements=7.84, values=73.51, calls=6023.07),
        "error_mask": Rates(elements=4.77),
        "error_scale": Rates(elements=3.12, calls=81.37),
        "error_sum": Rates(elements=8.03),
        "expand_forward": Rates(elements=2.84),
        "expand_input_gradient": Rates(elements=10.99, calls=4634.41),
        "gather_forward": Rates(elements=0.66),
        "gather_input_gradient": Rates(elements=2.11),
        "gru_forward": Rates(macs=1.36, elements=40.0),
        "gru_input_gradient": Rates(macs=1.66, elements=102.7),
        "head_forward": Rates(macs=2.5, elements=32.92, calls=51.74),
        "head_input_gradient": Rates(macs=5, elements=104.45, calls=64.66),
        "head_update": Rates(macs=35.65, calls=1798.71),
        "keep_channels": Rates(elements=5.66),
        "layer_normalization_forward": Rates(elements=14.02, values=194.6),
        "layer_normalization_input_gradient": Rates(elements=38.5, values=736.0),
        "lookup_forward": Rates(elements=2.25, calls=20.94),
        "lookup_input_gradient": Rates(elements=4.25, calls=92.7),
        "lstm_forward": Rates(macs=1.37, elements=44.2),
        "lstm_input_gradient": Rates(macs=1.59, elements=110.8),
        "max_pool_forward": Rates(elements=16.82, calls=131.89),
        "max_pool_input_gradient": Rates(elements=14.09, calls=115.56),
        "mean_squared_error": Rates(elements=113.22),
        "pool_forward": Rates(elements=5.9, calls=1375.81),
        "pool_input_gradient": Rates(elements=6.95, calls=748.62),
        "product_forward": Rates(elements=16.62, calls=192.73),
        "product_input_gradient": Rates(elements=10.67, calls=298.33),
        "product_reduced_gradient": Rates(elements=12.81),
        "rearrange_forward": Rates(elements=2.51, calls=89.89),
        "rearrange_input_gradient": Rates(elements=10.84, calls=205.67),
        "requantize_forward": Rates(elements=13.68, calls=161.18),
        "scaling_forward": Rates(elements=14.02, calls=150.09),
        "scaling_input_gradient": Rates(elements=10.41, calls=257.59),
        "transpose_forward": Rates(elements=3.36),
        "transpose_input_gradient": Rates(elements=3.34),
    }
)
"""By kernel."""


def work_of(program: Program, call: Step) -> Work:
    """What ``call``, a step of ``program`` or a stage of one, goes through."""
    graph, op = program.graph, call.op
    if isinstance(op, TensorOutput):
        return Work(elements=op.outputs)
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
    if isinstance(op, LayerNormalization):
        return Work(elements=source + output, values=output // len(op.gain))
    if isinstance(op, Conv | DepthwiseConv):
        return _of_convolution(program, call, op, source + output)
    return Work(macs=call.macs, elements=source + output)


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

    Within 3 % of what is counted for MCUNet, within 5 % for networks of wide kernels, pools, gates
    and recurrent cells, and within 10 % for the digits, whose pictures of 8 by 8 leave much to the
    calls.
    """
    return round(sum(instructions_of(program, step) for step in program.steps))
