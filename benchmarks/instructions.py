"""Rates of ``codegen.program.instructions``: fitted to counted steps, and how far off they are.

Compiles programs of several networks and plans, runs a training step of each in emulation, counts
every step of it, and fits instructions per multiply-accumulate, element, value and call to them by
least squares of relative errors, none of them negative. Prints the rates to be copied into
``codegen/program/instructions.py``, and beside what was counted what the rates there estimate.

    python -m benchmarks.instructions
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from benchmarks.mcunet import MODEL, PLANS, require_model
from codegen.compile import compile_graph
from codegen.firmware.boards import load_board
from codegen.firmware.program_file import load_programs
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.floats import Clamp, FloatConv, FloatGraph, FloatHead
from codegen.graph.ir import Graph, Loss, Padding
from codegen.importer.model import import_model
from codegen.operators.add import FloatAdd
from codegen.operators.average_pool import AveragePool
from codegen.operators.concat import Concat
from codegen.operators.expand import Expand
from codegen.operators.functions import X
from codegen.operators.gather import Gather
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.gru import FloatGru
from codegen.operators.layer_normalization import FloatLayerNormalization
from codegen.operators.lookup import Lookup
from codegen.operators.lstm import FloatLstm
from codegen.operators.max_pool import MaxPool
from codegen.operators.product import FloatProduct
from codegen.operators.rearrange import Rearrange, by_axis
from codegen.operators.requantize import FloatClamp
from codegen.operators.scaling import FloatScaling
from codegen.operators.transpose import Transpose
from codegen.program.instructions import Rates, estimated_instructions, work_of
from codegen.program.lowering import lower
from codegen.program.plans import (
    LastLayers,
    Plan,
    PlanSpec,
    WeightSpec,
    default_plans,
    load_plan,
    resolve,
)
from codegen.program.steps import Program
from codegen.quantization.model import quantize_model
from codegen.quantization.quantize import quantize
from fleet.cli._output import console, table
from simulator.machines.measure import profile_step

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"
BOARD = "stm32f746"
SMALL = 2_000
"""Instructions below which a relative error doesn't matter."""


def convolutions(draw: np.random.Generator) -> Callable[..., FloatConv]:
    """Makes layers with drawn weights (O, I, K, K) and ReLU6."""

    def conv(name: str, source: str, shape: tuple[int, ...], stride: int = 1) -> FloatConv:
        weight = draw.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape)
        side = shape[-1] // 2
        return FloatConv(
            name, source, name, weight, np.full(shape[0], 0.1), clamp=Clamp(0.0, 6.0),
            stride=(stride, stride), padding=Padding(side, side, side, side),
        )  # fmt: skip

    return conv


def mixed(size: int, loss: Loss) -> Graph:
    """A network of what MCUNet doesn't have: wide kernels, pools, branches, own activations.

    Its input has three channels of ``size`` by ``size``, which is a multiple of 8.
    """
    draw = np.random.default_rng(1)
    conv = convolutions(draw)
    half, eighth = size // 2, size // 8
    outputs = {"cross-entropy": 10, "binary": 16}.get(loss, 3 * size * size)
    features = 48 * eighth * eighth
    ops = (
        conv("stem", "x", (16, 3, 3, 3)),
        conv("wide", "stem", (16, 16, 3, 3)),
        FloatAdd("sum", ("wide", "stem"), "sum"),
        FloatClamp("bend", "sum", "bend", Clamp(0.0, 3.0)),
        Lookup("smooth", "bend", "smooth", ("tanh", X)),
        conv("down", "smooth", (32, 16, 3, 3), 2),
        conv("side", "down", (16, 32, 1, 1)),
        Concat("both", ("down", "side"), "both"),
        MaxPool("most", "both", "most", (2, 2), (2, 2)),
        AveragePool("mean", "most", "mean", (2, 2), (2, 2)),
        conv("late", "mean", (48, 48, 3, 3)),
        FloatHead("head", "late", "out", draw.normal(0, 0.03, (outputs, features)),
                  np.zeros(outputs), loss),
    )  # fmt: skip
    shapes = {
        "x": (3, size, size),
        **dict.fromkeys(("stem", "wide", "sum", "bend", "smooth"), (16, size, size)),
        "down": (32, half, half), "side": (16, half, half), "both": (48, half, half),
        "most": (48, size // 4, size // 4), "mean": (48, eighth, eighth),
        "late": (48, eighth, eighth),
    }  # fmt: skip
    graph = FloatGraph("mixed", "x", shapes, ops, {})
    return quantize(graph, draw.normal(0, 1, (32, 3, size, size)).astype(np.float32))


def gated(size: int) -> Graph:
    """Gates, chosen, moved, repeated and normalized pixels, constants by channel and by row.

    Its input has three channels of ``size`` by ``size``, which is even.
    """
    draw = np.random.default_rng(2)
    conv = convolutions(draw)
    rows, columns = np.arange(size), np.arange(size)
    shuffled = np.arange(16).reshape(4, 4).T.ravel()
    by_channel, by_row = (16, 1, 1), (1, size, 1)
    ops = (
        conv("stem", "x", (16, 3, 3, 3)),
        FloatScaling("scaled", "stem", "scaled", draw.normal(1, 0.3, by_channel),
                     draw.normal(0, 0.3, by_channel)),
        Gather("shuffled", "scaled", "shuffled", "channels", tuple(shuffled.tolist())),
        conv("early", "shuffled", (16, 16, 3, 3)),
        FloatScaling("bent", "early", "bent", draw.normal(1, 0.3, by_row),
                     draw.normal(0, 0.3, by_row), draw.normal(0, 0.3, by_row)),
        FloatLayerNormalization("normed", "bent", "normed", draw.normal(1, 0.3, 16),
                                draw.normal(0, 0.3, 16), 1e-5),
        Gather("half", "normed", "half", "height", tuple(range(0, size, 2))),
        conv("narrow", "half", (16, 16, 1, 1)),
        Rearrange("tall", "narrow", "tall", *by_axis((rows // 2).tolist(), columns.tolist())),
        GlobalAveragePool("squeezed", "tall", "squeezed"),
        conv("excite", "squeezed", (16, 16, 1, 1)),
        Lookup("gate", "excite", "gate", ("sigmoid", X)),
        FloatProduct("excited", ("tall", "gate"), "excited"),
        conv("look", "excited", (16, 16, 1, 1)),
        Lookup("attention", "look", "attention", ("sigmoid", X)),
        FloatProduct("attended", ("excited", "attention"), "attended"),
        AveragePool("mean", "attended", "mean", (size, 1), (size, 1)),
        conv("context", "mean", (16, 16, 1, 1)),
        Expand("around", "context", "around", (16, size, size)),
        FloatAdd("met", ("attended", "around"), "met"),
        Transpose("turned", "met", "turned", (size, size, 16), (2, 0, 1), (size, 16, size)),
        Transpose("back", "turned", "back", (16, size, size), (1, 2, 0), (16, size, size)),
        conv("late", "back", (24, 16, 3, 3), 2),
        GlobalAveragePool("pool", "late", "pool"),
        FloatHead("head", "pool", "out", draw.normal(0, 0.2, (10, 24)), np.zeros(10)),
    )  # fmt: skip
    shapes = {op.output: (16, size, size) for op in ops if not isinstance(op, FloatHead)} | {
        "x": (3, size, size),
        **dict.fromkeys(("half", "narrow"), (16, size // 2, size)),
        **dict.fromkeys(("squeezed", "excite", "gate"), (16, 1, 1)),
        **dict.fromkeys(("mean", "context"), (16, 1, size)),
        "turned": (size, 16, size),
        "late": (24, size // 2, size // 2), "pool": (24, 1, 1),
    }  # fmt: skip
    graph = FloatGraph("gated", "x", shapes, ops, {})
    return quantize(graph, draw.normal(0, 1, (32, 3, size, size)).astype(np.float32))


def recurrent(steps: int) -> Graph:
    """A GRU, and an LSTM over its states of which the last is read; ``steps`` of 10 features."""
    draw = np.random.default_rng(3)
    conv = convolutions(draw)
    ops = (
        conv("stem", "x", (16, 10, 1, 1)),
        conv("first_input", "stem", (96, 16, 1, 1)),
        FloatGru("first", "first_input", "first", draw.normal(0, 0.2, (96, 32)), False,
                 draw.normal(0, 0.2, 32)),
        conv("second_input", "first", (160, 32, 1, 1)),
        FloatLstm("second", "second_input", "second", draw.normal(0, 0.2, (160, 40)), True),
        FloatHead("head", "second", "out", draw.normal(0, 0.2, (10, 40)), np.zeros(10)),
    )  # fmt: skip
    channels = {"x": 10, "stem": 16, "first_input": 96, "first": 32, "second_input": 160}
    shapes = {name: (count, 1, steps) for name, count in channels.items()} | {"second": (40, 1, 1)}
    graph = FloatGraph("recurrent", "x", shapes, ops, {})
    return quantize(graph, draw.normal(0, 1, (32, 10, 1, steps)).astype(np.float32))


def spread(graph: Graph, first: int, depth: int) -> Plan:
    """Biases of the last ``depth`` layers, an eighth of the channels of every sixth of them."""
    weights = [
        WeightSpec(layer=op.name, count=max(1, op.weight.shape[-1] // 8))
        for index, op in enumerate(graph.convolutions)
        if index % 6 == first and index >= len(graph.convolutions) - depth
    ]
    biases = LastLayers(last=depth)
    name = f"every sixth from {first}".replace(" ", "-")
    spec = PlanSpec(name=name, biases=biases, weights=weights, state="int8-stochastic")
    return resolve(spec, graph)


def programs() -> Iterator[Program]:
    """What is counted."""
    mcunet = quantize_model(import_model(MODEL), None).graph
    for name in ("49kb", "99kb", "148kb"):
        plan = resolve(load_plan(f"{PLANS}#{name}"), mcunet)
        # 148kb fits the board with one byte a weight only.
        yield lower(mcunet, replace(plan, state="int8-stochastic") if name == "148kb" else plan)
    for first, depth in ((1, 36), (2, 30), (3, 24), (4, 36)):
        yield lower(mcunet, spread(mcunet, first, depth))
    digits = import_model(DIGITS / "digits.onnx")
    small = quantize_model(digits, DIGITS / "calibration.npz").graph
    others = [(mixed(32, "cross-entropy"), 3), (mixed(16, "binary"), 1), (mixed(16, "mse"), 2)]
    others += [(gated(32), 3), (gated(16), 3), (recurrent(49), 3), (recurrent(20), 3)]
    for graph, plans in ((small, 3), *others):
        # The head of the last network is too large to be trained on the board.
        yield from (lower(graph, plan) for plan in default_plans(graph)[:plans])


def counted(program: Program) -> tuple[list[int], int]:
    """Instructions of each step, and of what calls them."""
    board = load_board(BOARD)
    with tempfile.TemporaryDirectory() as folder:
        bundle = compile_graph(
            program.graph,
            board.model_copy(update={"sram_limit_bytes": board.sram.bytes}),
            [program.plan],
            onnx_sha256="00" * 32,
            out=Path(folder) / "bundle",
            protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
            toolchain=find_toolchain("gcc"),
        )
        plan = program.plan.id
        steps = [step.function for step in load_programs(bundle)[plan].steps]
        profile = profile_step(bundle, plan, steps)
    return [profile.by_function[step] for step in steps], profile.outside


def fitted(cases: list[tuple[Program, list[int]]]) -> dict[str, Rates]:
    """Kernel → rates that come nearest to the counts of all steps."""
    fields = len(astuple(Rates()))
    places: dict[str, int] = {}
    rows: list[dict[int, float]] = []
    counts: list[int] = []
    for program, steps in cases:
        for step, count in zip(program.steps, steps, strict=True):
            row: dict[int, float] = defaultdict(float)
            for call in step.calls():
                first = fields * places.setdefault(call.kernel, len(places))
                for column, amount in enumerate(astuple(work_of(program, call)), first):
                    row[column] += amount
            rows.append(row)
            counts.append(count)
    matrix = np.zeros((len(rows), fields * len(places)))
    for index, row in enumerate(rows):
        matrix[index, list(row)] = list(row.values())
    # Between absolute and relative errors: large steps matter, small networks as well.
    weight = 1 / (np.array(counts) + SMALL) ** 0.6
    found, _ = nnls(matrix * weight[:, None], np.array(counts) * weight)
    return {
        kernel: Rates(*(round(float(rate), 2) for rate in found[fields * place :][:fields]))
        for kernel, place in places.items()
    }


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    require_model()
    cases, rows, screen = [], [], console()
    for program in programs():
        with screen.status(f"{program.graph.name}, plan {program.plan.name}"):
            steps, outside = counted(program)
        cases.append((program, steps))
        total, estimate = sum(steps) + outside, estimated_instructions(program)
        error = f"{100 * (estimate / total - 1):+.1f} %"
        rows.append([program.graph.name, program.plan.name, total, estimate, error])
    for kernel, rates in sorted(fitted(cases).items()):
        shown = ", ".join(f"{k}={v:g}" for k, v in asdict(rates).items() if v)
        print(f'        "{kernel}": Rates({shown}),')
    titles = ["network", "plan", "counted", "estimated", "error"]
    screen.print(table("Instructions of a training step", titles, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
