"""Full-size networks of the families that people deploy: what training them takes on a board.

Each is built in PyTorch with random weights (tests/codegen/models), exported, calibrated with
random inputs, compiled with two update plans and run in emulation (instruction counts are exact).
Plan `biases` trains the biases of the later half of the layers, but at most twelve, and the head;
`sparse` also half of the input channels of up to four of these layers, of those that a depthwise
convolution reads where there are such; where the paper has a figure, `sparse-int8` is that with one
byte per trained weight. Needs torch and onnxscript.

    python -m benchmarks.networks [--board stm32f746] [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from codegen.graph.floats import FloatConv, FloatGraph
from codegen.graph.ir import Loss
from codegen.importer.model import import_model
from codegen.program.plans import LastLayers, PlanSpec, WeightSpec
from fleet.cli._output import console, table
from fleet.firmware import compile_firmware
from simulator.machines.measure import measure
from tests.codegen.models.make_models import export, prepared
from tests.codegen.models.networks import FULL_SIZE

OPSET = 18
CALIBRATION_SAMPLES = 32
MOST_BIASES = 12
MOST_WEIGHTS = 4

LOSSES: dict[str, Loss] = {"autoencoder_640": "mse"}
"""Of those that have as many outputs as inputs; all others are classifiers."""

PAPER = {"mobilenet_v2_0.35_128": 141, "proxylessnas_0.3_128": 135}
"""SRAM in KB of sparse training on an STM32F746: arXiv 2206.15472, with plans of its own."""


@dataclass(frozen=True)
class Figures:
    """What one plan of a network takes; bytes, instructions, seconds."""

    network: str
    plan: str
    delta_values: int
    macs_forward: int
    macs_backward: int
    arena_bytes: int
    arena_above_bound_bytes: int
    """By which the arena, without logits, exceeds the largest live set."""
    sram_without_link_bytes: int
    sram_bytes: int
    flash_bytes: int
    forward_instructions: int
    step_instructions: int
    compile_seconds: float

    @property
    def forward_per_mac(self) -> float:
        return self.forward_instructions / self.macs_forward

    @property
    def step_per_forward_mac(self) -> float:
        return self.step_instructions / self.macs_forward


def update_plans(graph: FloatGraph) -> list[PlanSpec]:
    """Plans `biases` and `sparse`."""
    convolutions = [op for op in graph.ops if isinstance(op, FloatConv)]
    late = convolutions[-min(MOST_BIASES, -(-len(convolutions) // 2)) :]
    full = [op for op in late if not op.depthwise]
    widened = {op.input for op in convolutions if op.depthwise}
    chosen = [op for op in full if op.output in widened] or full
    biases = LastLayers(last=len(late))
    # The head of an autoencoder is as large as a layer gets.
    head = graph.ending.loss == "cross-entropy"
    weights = [
        WeightSpec(layer=op.name, count=-(-op.weight.shape[1] // 2))
        for op in chosen[-MOST_WEIGHTS:]
    ]
    return [
        PlanSpec(name="biases", biases=biases, head=head),
        PlanSpec(name="sparse", biases=biases, weights=weights, head=head),
    ]


def exported(network: str, folder: Path) -> tuple[Path, Path]:
    """The network's ONNX file and its calibration set."""
    make, shape = FULL_SIZE[network]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()):
        model, _ = export(prepared(make), shape, folder / network, OPSET, dynamic=True)
    calibration = folder / f"{network}.npz"
    random = np.random.default_rng(1)
    x = random.normal(size=(CALIBRATION_SAMPLES, *shape)).astype(np.float32)
    np.savez(calibration, x=x)
    return model, calibration


def figures(
    network: str, model: Path, calibration: Path, plan: PlanSpec, board: str, folder: Path
) -> Figures:
    """Compiles one plan and measures it."""
    plan_file = folder / f"{network}-{plan.name}.json"
    plan_file.write_text(plan.model_dump_json(exclude_defaults=True))
    out = folder / f"{network}-{plan.name}"
    start = time.perf_counter()
    loss = LOSSES.get(network, "cross-entropy")
    bundle = compile_firmware(model, board, [str(plan_file)], calibration, out, loss=loss)
    seconds = time.perf_counter() - start
    instructions = measure(out).instructions
    report = bundle.report.plans[0]
    sram = report.sram_bytes
    return Figures(
        network=network,
        plan=plan.name,
        delta_values=report.delta_values,
        macs_forward=report.macs.forward,
        macs_backward=report.macs.backward,
        arena_bytes=sram.arena,
        arena_above_bound_bytes=report.arena_above_bound_bytes,
        sram_without_link_bytes=sram.total - sram.link,
        sram_bytes=sram.total,
        flash_bytes=bundle.report.flash_bytes.total,
        forward_instructions=instructions.forward,
        step_instructions=instructions.step,
        compile_seconds=seconds,
    )


def shown(results: Sequence[Figures]) -> list[list[object]]:
    """Rows of the table."""
    return [
        [
            result.network,
            result.plan,
            result.delta_values,
            f"{result.macs_forward / 1e6:.2f}",
            f"{result.macs_backward / 1e6:.2f}",
            result.arena_bytes,
            result.arena_above_bound_bytes,
            result.sram_bytes,
            result.flash_bytes,
            f"{result.forward_instructions / 1e6:.2f}",
            f"{result.forward_per_mac:.2f}",
            f"{result.step_instructions / 1e6:.2f}",
            f"{result.step_per_forward_mac:.2f}",
            f"{result.compile_seconds:.0f}",
        ]
        for result in results
    ]


COLUMNS = [
    *("network", "plan", "trained"),
    *("MACs forward, M", "backward, M"),
    *("arena", "above its bound", "SRAM", "flash"),
    *("forward, M", "per MAC", "step, M", "per forward MAC"),
    "compile, s",
]


def beside_paper(results: Sequence[Figures]) -> list[list[object]]:
    """Rows: network, plan, the paper's KB of SRAM, ours without and with the link's buffers."""
    return [
        [
            result.network,
            result.plan,
            PAPER[result.network],
            f"{result.sram_without_link_bytes / 1024:.0f}",
            f"{result.sram_bytes / 1024:.0f}",
        ]
        for result in results
        if result.network in PAPER
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(FULL_SIZE))
    parser.add_argument("--board", default="stm32f746")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [name for name in options.networks if name not in FULL_SIZE]
    if unknown:
        parser.error(f"no network {unknown[0]!r}; there are {', '.join(FULL_SIZE)}")
    warnings.simplefilter("ignore")
    screen = console()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for network in options.networks or FULL_SIZE:
            with screen.status(network):
                model, calibration = exported(network, folder)
                plans = update_plans(import_model(model, LOSSES.get(network)))
                if network in PAPER:
                    lean = {"name": "sparse-int8", "state": "int8-stochastic"}
                    plans.append(plans[-1].model_copy(update=lean))
                for plan in plans:
                    results.append(
                        figures(network, model, calibration, plan, options.board, folder)
                    )
    screen.print(
        table(f"On {options.board}: bytes and instructions", COLUMNS, shown(results)),
    )
    if compared := beside_paper(results):
        titles = ["network", "plan", "paper", "here, without link", "here, everything"]
        screen.print(table("SRAM in KB beside arXiv 2206.15472", titles, compared))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
