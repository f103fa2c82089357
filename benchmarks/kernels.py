"""What each kernel of a training step costs: MCUNet-5FPS on an STM32F746.

Compiles the published plan 49kb, runs one step of the image in emulation and prints the exact
number of instructions of every kernel, layer by layer, then by kernel and shape. A second plan
trains a quarter of the channels of the last depthwise layers, whose weights 49kb leaves alone.
TinyEngine was measured in the same way (GCC 12.2 -Ofast); its backward pass is in float.

    python -m benchmarks.kernels [--board stm32f746] [--compiler zig]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mcunet import MODEL, PLANS, require_model
from codegen.firmware.bundle import Bundle
from codegen.firmware.program_file import CallInfo, ProgramInfo, load_programs
from codegen.graph.ir import DepthwiseConv, Graph
from codegen.graph.names import identifier
from codegen.importer.model import import_model
from codegen.program.plans import LastLayers, PlanSpec, WeightSpec
from codegen.quantization.model import quantize_model
from fleet.cli._output import console, table
from fleet.firmware import compile_firmware
from simulator.machines.measure import profile_step

PUBLISHED, DEPTHWISE = "49kb", "depthwise"
LAST_LAYERS = 20
"""As many as plan 49kb goes back through."""
TINY_ENGINE = {"convolution_forward 1x1": 2.22, "depthwise_forward": 5.62}
TINY_ENGINE_BACKWARD = 4.16


@dataclass(frozen=True)
class Cost:
    """One call of a kernel, or all calls for the rows of a layer in a chain."""

    call: CallInfo
    shape: str
    """Kernel and stride of a convolution."""
    instructions: int

    @property
    def values(self) -> int:
        """Number of values that it makes."""
        return sum(math.prod(shape) for shape in self.call.outputs)


def plan_of_depthwise_weights(graph: Graph) -> PlanSpec:
    """A quarter of the channels of each depthwise layer among the last ones."""
    weights = [
        WeightSpec(layer=op.name, count=op.weight.shape[-1] // 4)
        for op in graph.convolutions[-LAST_LAYERS:]
        if isinstance(op, DepthwiseConv)
    ]
    return PlanSpec(name=DEPTHWISE, biases=LastLayers(last=LAST_LAYERS), weights=weights)


def shapes_of(graph: Graph) -> dict[str, str]:
    """Layer → kernel and stride, as in "3x3 / 2"."""
    shapes = {}
    for op in graph.convolutions:
        kernel = op.weight.shape[:2] if isinstance(op, DepthwiseConv) else op.weight.shape[1:3]
        stride = "" if op.stride == (1, 1) else f" / {op.stride[0]}"
        shapes[op.name] = "x".join(map(str, kernel)) + stride
    return shapes


def costs_of(
    bundle: Bundle, program: ProgramInfo, shapes: dict[str, str]
) -> tuple[list[Cost], int]:
    """What each kernel of one step takes, and all instructions of the step."""
    steps = profile_step(bundle, program.id, [step.function for step in program.steps])
    chained = [stage for step in program.steps if step.chain for stage in step.chain.stages]
    functions = sorted({f"tf_{stage.kernel}" for stage in chained})
    kernels = profile_step(bundle, program.id, functions).by_constant

    def calls() -> Iterator[tuple[CallInfo, int]]:
        for step in program.steps:
            if step.chain is None:
                yield step, steps.by_function[step.function]
                continue
            for stage in step.chain.stages:
                constant = f"layer_{identifier(stage.layer)}"
                yield stage, kernels[f"tf_{stage.kernel}", constant]

    costs = [Cost(call, shapes.get(call.layer, ""), count) for call, count in calls()]
    return costs, sum(steps.by_function.values()) + steps.outside


def per(count: int, of: int) -> str:
    return f"{count / of:.2f}" if of else ""


def by_layer(costs: list[Cost]) -> list[list[object]]:
    rows: list[list[object]] = []
    for cost in costs:
        call, count = cost.call, cost.instructions
        tensors = [
            ", ".join("x".join(map(str, shape)) for shape in group)
            for group in (call.inputs, call.outputs)
        ]
        ratios = per(count, call.macs), per(count, cost.values)
        rows.append([call.layer, call.kernel, cost.shape, *tensors, call.macs, count, *ratios])
    return rows


def by_shape(costs: list[Cost]) -> list[list[object]]:
    groups: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    for cost in costs:
        # The arithmetic of other kernels doesn't depend on the layer's shape.
        with_shape = cost.call.kernel.startswith(("convolution", "depthwise"))
        groups[cost.call.kernel, cost.shape if with_shape else ""].append(cost)
    rows: list[list[object]] = []
    for (kernel, shape), group in sorted(groups.items()):
        macs, count = sum(cost.call.macs for cost in group), sum(c.instructions for c in group)
        ratios = [cost.instructions / cost.call.macs for cost in group if cost.call.macs]
        spread = [f"{min(ratios):.2f}", f"{max(ratios):.2f}"] if ratios else ["", ""]
        values = per(count, sum(cost.values for cost in group))
        figures = [len(group), macs, count, per(count, macs), *spread, values]
        rows.append([kernel, shape, *figures, tiny_engine(kernel, shape)])
    return rows


def tiny_engine(kernel: str, shape: str) -> float | str:
    """Its instructions per multiply-accumulate, over all layers of a kind."""
    if kernel.endswith(("convolution_input_gradient", "depthwise_input_gradient", "weight_update")):
        return TINY_ENGINE_BACKWARD
    return TINY_ENGINE.get(kernel, TINY_ENGINE.get(f"{kernel} {shape}", ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", default="stm32f746")
    parser.add_argument("--compiler", default=None, choices=("gcc", "zig"))
    options = parser.parse_args()
    require_model()
    screen = console()
    graph = quantize_model(import_model(MODEL), None).graph
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        own = folder / "depthwise.json"
        own.write_text(plan_of_depthwise_weights(graph).model_dump_json())
        bundle = compile_firmware(
            MODEL,
            options.board,
            [f"{PLANS}#{PUBLISHED}", str(own)],
            None,
            folder / "bundle",
            compiler=options.compiler,
        )
        for program in load_programs(bundle).values():
            costs, total = costs_of(bundle, program, shapes_of(graph))
            if program.name == DEPTHWISE:
                costs = [c for c in costs if c.call.kernel == "depthwise_weight_update"]
            titles = ["layer", "kernel", "shape", "in", "out", "MACs", "instructions"]
            titles += ["per MAC", "per value"]
            screen.print(table(f"Plan {program.name}: kernels", titles, by_layer(costs)))
            titles = ["kernel", "shape", "calls", "MACs", "instructions", "per MAC", "least"]
            titles += ["most", "per value", "TinyEngine per MAC"]
            screen.print(table(f"Plan {program.name}: by shape", titles, by_shape(costs)))
            if program.name == PUBLISHED:
                inside = sum(cost.instructions for cost in costs)
                screen.print(
                    f"The step: {total:,} instructions, {total - inside:,} of them around kernels."
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
