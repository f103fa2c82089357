"""What a training step takes on each core: digits, and MCUNet-5FPS with the published plan 49kb.

Compiles both for Arm's own boards and runs a step of every image in QEMU, which counts the
instructions of each function exactly; the bits of all of them are compared. The Cortex-M55 is there
twice, without its vectors and with them, and so is the Cortex-M33 for its DSP instructions.

    python -m benchmarks.cores [--compiler zig] [--model digits]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.mcunet import MODEL, PLANS
from codegen.firmware.boards import Board, load_board
from codegen.firmware.bundle import Bundle
from fleet.cli._output import console, table
from fleet.firmware import compile_firmware
from simulator.machines.image_engine import ImageEngine

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"
PUBLISHED = "49kb"
LABEL, RATE_Q20, SEED = 3, 2**20 // 100, 1

CORES = [
    ("Cortex-M0+", "mps2-an383", {}),
    ("Cortex-M3", "mps2-an385", {}),
    ("Cortex-M33, no DSP", "mps2-an505", {"dsp": False, "fpu": "none"}),
    ("Cortex-M33", "mps2-an505", {}),
    ("Cortex-M4", "mps2-an386", {}),
    ("Cortex-M7", "mps2-an500", {}),
    ("Cortex-M55, no vectors", "mps3-an547", {"mve": False}),
    ("Cortex-M55", "mps3-an547", {}),
]
"""Name, board, and what of the board is different."""
WITHOUT, WITH = "Cortex-M55, no vectors", "Cortex-M55"

FORWARD = {
    "full convolutions, forward": (
        "tf_block_",
        "tf_convolution_forward",
        "tf_fill_up",
        "tf_find_inner",
        "tf_gather_block",
        "tf_gather_columns",
        "gather_each",
        "gather_pixel",
        "gather_stem",
        "put_mask",
        "put_trained",
        "run_pixels",
        "run_rows",
        "run_single",
        "run_span",
        "widen",
    ),
    "depthwise convolutions, forward": (
        "tf_depthwise_forward",
        "tf_depthwise_forward_in_vectors",
        "one_channel",
        "slide_",
        "store_row",
        "tf_find_taps",
        "tf_gather_codes",
        "tf_widen_taps",
        "tf_slide_rows_of",
        "one_row",
        "take_taps",
    ),
}
BACKWARD = {
    "full convolutions, input gradient": (
        "tf_block_gradient",
        "tf_block_loop",
        "tf_block_run",
        "tf_block_scale",
        "tf_block_set_stream",
        "tf_block_single",
        "tf_block_widen",
        "tf_convolution_input_gradient",
        "gather_tap",
        "put_trained",
        "run_single",
        "scale_",
    ),
}
"""Loops by the beginnings of their functions' names, in the forward pass, and in what a step does
beyond it."""


@dataclass(frozen=True)
class Counted:
    """A step of one image."""

    core: str
    forward: dict[str, int]
    step: dict[str, int]
    stack: int
    bundle: Bundle
    bits: bytes

    def loop(self, name: str) -> int:
        """Instructions of one of the loops above."""
        if name in FORWARD:
            return _sum(self.forward, FORWARD[name])
        return _sum(self.step, BACKWARD[name]) - _sum(self.forward, BACKWARD[name])


def _sum(by_function: dict[str, int], names: tuple[str, ...]) -> int:
    return sum(count for function, count in by_function.items() if function.startswith(names))


def board_of(name: str, changes: dict[str, object]) -> Board:
    return Board.model_validate(load_board(name).model_dump() | changes)


def counted(core: str, bundle: Bundle) -> Counted:
    """Counts the bundle's first plan."""
    plan = bundle.manifest.plans[0]
    shape = bundle.manifest.model.input.shape
    sample = np.random.default_rng(SEED).integers(-128, 128, shape).astype(np.int8)
    with ImageEngine(bundle, plan.id) as engine:
        with engine.counting() as counter:
            engine.score(sample, LABEL)
            forward = counter.by_function()
            counter.clear()
            engine.train_step(sample, LABEL, RATE_Q20, SEED)
            step = counter.by_function()
        bits = engine.logits.tobytes() + engine.state
        stack = engine.machine.stack_high_water_bytes()
    return Counted(core, forward, step, stack, bundle, bits)


def cores(model: Path, plans: list[str], calibration: Path | None, compiler: str) -> list[Counted]:
    """All cores with one model."""
    found = []
    for core, name, changes in CORES:
        with tempfile.TemporaryDirectory() as scratch:
            bundle = compile_firmware(
                model,
                board_of(name, changes),
                plans,
                calibration,
                Path(scratch) / "bundle",
                compiler=compiler,
            )
            found.append(counted(core, bundle))
    return found


def rows_of(found: list[Counted]) -> list[list[object]]:
    least = sum(next(one for one in found if one.core == "Cortex-M7").step.values())
    rows: list[list[object]] = []
    for one in found:
        step = sum(one.step.values())
        report = one.bundle.report
        rows.append(
            [
                one.core,
                sum(one.forward.values()),
                step,
                f"{step / least:.2f}",
                one.stack,
                report.plans[0].sram_bytes.total,
                report.flash_bytes.total,
            ]
        )
    return rows


def loops_of(found: list[Counted]) -> list[list[object]]:
    before, after = (next(one for one in found if one.core == core) for core in (WITHOUT, WITH))
    rows: list[list[object]] = []
    for name in (*FORWARD, *BACKWARD):
        a, b = before.loop(name), after.loop(name)
        rows.append([name, a, b, f"{a / b:.2f}"])
    for name, part in (("forward pass", "forward"), ("training step", "step")):
        a, b = (sum(getattr(one, part).values()) for one in (before, after))
        rows.append([name, a, b, f"{a / b:.2f}"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="gcc", choices=("gcc", "zig"))
    parser.add_argument("--model", action="append", choices=("digits", "mcunet"))
    options = parser.parse_args()
    screen = console()
    models = {
        "digits": (DIGITS / "digits.onnx", [f"{DIGITS / 'plans.json'}#small"], DIGITS),
        "mcunet": (MODEL, [f"{PLANS}#{PUBLISHED}"], None),
    }
    for name in options.model or models:
        model, plans, samples = models[name]
        if not model.exists():
            print(f"{model} isn't there; set TINYFLEET_SHARED to the shared folder")
            return 1
        calibration = None if samples is None else samples / "calibration.npz"
        with screen.status(f"{name}, {options.compiler}"):
            found = cores(model, plans, calibration, options.compiler)
        compiler = found[0].bundle.manifest.compiler
        plan = found[0].bundle.manifest.plans[0].name
        titles = ["core", "forward", "step", "of M7", "stack", "SRAM", "flash"]
        screen.print(table(f"{name}, plan {plan}, {compiler}", titles, rows_of(found)))
        titles = ["Cortex-M55", "DSP", "vectors", "times"]
        screen.print(table("Instructions", titles, loops_of(found)))
        if len({one.bits for one in found}) > 1:
            print("The cores do not agree in their logits and states", file=sys.stderr)
            return 1
        screen.print("Logits and states after the step are the same on all cores.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
