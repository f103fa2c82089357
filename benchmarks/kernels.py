"""Instructions per multiply-accumulate of the convolution kernels, for every layer of MCUNet-5FPS.

Each kernel is called by itself in emulation, with the layer's own weights and constants and random
codes and errors; counts are exact. Weight updates are of a quarter of the input channels.
TinyEngine was measured in the same way (GCC 12.2 -Ofast); its backward pass is in float.

    python benchmarks/kernels.py [--cpu cortex-m4] [--compiler zig]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from codegen import scratch
from codegen.blob import pack_rows
from codegen.importer import import_model
from codegen.ir import Conv, DepthwiseConv, Graph
from codegen.layer_arithmetic import convolution_arithmetic, terms_per_output
from codegen.quantize_model import quantize_model
from device_runtime import include_directories, source_root
from fleet.cli._output import console, table
from simulator.kernel_call import ArmKernels, Struct, arm_kernels

SHARED = Path(os.environ.get("TINYFLEET_SHARED", Path(__file__).parents[2] / "shared"))
MODEL = SHARED / "models" / "mcunet-5fps-head10-int8.onnx"
TINY_ENGINE = {"pointwise forward": 2.22, "depthwise forward": 5.62}
TINY_ENGINE_BACKWARD = 4.16

Layer = Conv | DepthwiseConv


def struct_of(graph: Graph, op: Layer) -> Struct:
    """The tf_convolution of a layer."""
    constants = convolution_arithmetic(graph, op)
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
    gains = np.array([g.word for g in constants.weight_gain], np.uint32)
    return Struct(
        *(("H", size) for size in (*source.shape, *target.shape)),
        *(("B", size) for size in (*kernel, *op.stride, op.padding.top, op.padding.left)),
        ("h", source.zero_point),
        ("h", target.zero_point),
        ("P", np.array([m.word for m in constants.requantize], np.int32)),
        ("i", constants.pre_shift),
        ("i", constants.bias_limit),
        ("P", constants.error_multiplier.astype(np.int16)),
        ("b", constants.error_exponent),
        ("B", constants.error_headroom),
        ("B", constants.error_shift),
        ("B", constants.gradient_shift),
        ("P", gains),
        ("P", gains),
    )


def stored(op: Layer, weight: np.ndarray) -> np.ndarray:
    """Weights as the device stores them."""
    return pack_rows(weight.reshape(len(weight), -1)) if isinstance(op, Conv) else weight


def words(size: int) -> np.ndarray:
    """Scratch of ``size`` bytes."""
    return np.zeros(-(-size // 2), np.int16)


def count(engine: ArmKernels, graph: Graph, op: Layer) -> dict[str, tuple[int, int]]:
    """Kernel → (instructions, multiply-accumulates)."""
    draw = np.random.default_rng(1)
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    layer, name = struct_of(graph, op), "convolution" if isinstance(op, Conv) else "depthwise"
    height = target.shape[0]
    macs = target.size * terms_per_output(op)
    codes = draw.integers(-128, 128, source.shape).astype(np.int8)
    error = draw.integers(-32767, 32768, target.shape).astype(np.int16)
    scale = Struct(("i", -15), ("i", 32767))
    weights = Struct(("P", stored(op, op.weight)), ("P", None), ("P", None), ("H", 0))
    channels = np.arange(0, source.shape[2], 4, dtype=np.uint16)
    trained = stored(op, np.ascontiguousarray(op.weight[..., channels]))
    if isinstance(op, Conv):
        forward = scratch.convolution_forward_bytes(op, 0)
        gradient = scratch.convolution_input_gradient_bytes(op, 0)
        update = scratch.convolution_weight_update_bytes(target)
    else:
        forward = scratch.depthwise_forward_bytes(op, source, target, height)
        gradient = scratch.depthwise_input_gradient_bytes(op, source, target)
        update = scratch.depthwise_weight_update_bytes(op, source, target)
    span = Struct(("H", 0), ("H", height), ("H", source.shape[0]), ("H", height))
    output, left = np.zeros(target.shape, np.int8), np.zeros(source.shape, np.int16)
    calls = {
        "forward": (span, codes, weights, op.bias, output, None, words(forward)),
        "input_gradient": (error, scale, weights, left, scale, words(gradient)),
        "weight_update": (
            error,
            scale,
            codes,
            Struct(
                ("P", trained),
                ("P", np.zeros_like(trained)),
                ("P", None),
                ("I", 0),
                ("P", channels),
                ("H", len(channels)),
            ),
            Struct(("I", 26214), ("I", 1), ("I", 1), ("H", 0), ("B", 1)),
            words(update),
        ),
    }
    return {
        kernel: (
            engine.call(f"tf_{name}_{kernel}", layer, *arguments).instructions,
            macs * len(channels) // source.shape[2] if kernel == "weight_update" else macs,
        )
        for kernel, arguments in calls.items()
    }


def kind(op: Layer) -> str:
    """What the totals are of."""
    if isinstance(op, DepthwiseConv):
        return "depthwise"
    return "pointwise" if op.weight.shape[1:3] == (1, 1) else "spatial"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", default="cortex-m7", choices=("cortex-m7", "cortex-m4"))
    parser.add_argument("--compiler", default=None, choices=("gcc", "zig"))
    options = parser.parse_args()
    if not MODEL.exists():
        print(f"{MODEL} isn't there; set TINYFLEET_SHARED to the shared folder", file=sys.stderr)
        return 1
    graph = quantize_model(import_model(MODEL), None).graph
    engine = arm_kernels(
        sorted((source_root() / "kernels").glob("*.c")),
        include_directories(),
        cpu=options.cpu,
        compiler=options.compiler,
    )
    rows: list[list[object]] = []
    instructions: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for op in graph.convolutions:
        counted = count(engine, graph, op)
        cells = [f"{found / products:.2f}" for found, products in counted.values()]
        rows.append([op.name, kind(op), counted["forward"][1], *cells])
        for kernel, (found, products) in counted.items():
            total = f"{kind(op)} {kernel.replace('_', ' ')}"
            instructions[total] += found
            macs[total] += products
    titles = ["layer", "kind", "MACs", "forward", "input gradient", "weight update"]
    screen = console()
    screen.print(table("Instructions per multiply-accumulate", titles, rows))
    totals: list[list[object]] = [
        [
            total,
            macs[total],
            instructions[total],
            f"{instructions[total] / macs[total]:.2f}",
            TINY_ENGINE.get(total, "" if "forward" in total else TINY_ENGINE_BACKWARD),
        ]
        for total in sorted(instructions)
    ]
    titles = ["all layers", "MACs", "instructions", "per MAC", "TinyEngine"]
    screen.print(table("Totals", titles, totals))
    return 0


if __name__ == "__main__":
    sys.exit(main())
