"""MCUNet-5FPS (128 x 128, 10 classes) on an STM32F746, beside what TinyEngine needs for it.

Compiles the published update plans, runs the images in emulation (instruction counts are exact) and
the same program on this machine. TinyEngine's figures were measured in the same way: Cortex-M7
images, GCC 12.2 -Ofast; total SRAM is .data, .bss and the deepest stack, its link has no buffers.

    python -m benchmarks.mcunet [--board stm32f746] [--json FILE] [PLAN ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.downlink import bytes_down
from codegen.compile import build_host_engine
from codegen.firmware.bundle import Bundle
from codegen.firmware.host_engine import HostEngine
from fleet.cli._output import console, table
from fleet.firmware import compile_firmware
from simulator.machines.measure import measure

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("TINYFLEET_SHARED", ROOT.parent / "shared"))
MODEL = SHARED / "models" / "mcunet-5fps-head10-int8.onnx"
PLANS = SHARED / "models" / "mcunet-5fps-plans.json"
HOST_STEPS = 40


@dataclass(frozen=True)
class Figures:
    """What one plan takes; bytes, instructions, seconds."""

    plan: str
    state: str
    step_instructions: int
    forward_instructions: int
    sram_bytes: int
    """Everything but the link's buffers, with the stack that is reserved."""
    sram_measured_stack_bytes: int
    """The same with the deepest stack instead of the reserved one."""
    sram_with_link_bytes: int
    arena_bytes: int
    arena_lower_bound_bytes: int
    state_bytes: int
    flash_bytes: int
    weights_bytes: int
    """A version of the weights, as it is published."""
    line_bytes_down: int
    """What a device receives for a version, computed (``benchmarks.downlink``)."""
    compile_seconds: float
    host_steps_per_second: float


# What is asked of plan 49kb: TinyEngine's figure where it has one, the most allowed, the aim.
WANTED: dict[str, tuple[int | str, int, int]] = {
    "step_instructions": (106_371_641, 40_000_000, 36_000_000),
    "forward_instructions": (65_036_230, 26_000_000, 24_000_000),
    "sram_bytes": (232_632, 108 * 1024, 100 * 1024),
    "flash_bytes": (662_540, 700 * 1024, 600 * 1024),
    "line_bytes_down": ("", 60_000, 56_000),
}


def steps_per_second(bundle: Bundle, plan: str, folder: Path) -> float:
    """Training steps per second of the host engine, on one core."""
    library = build_host_engine(bundle, folder / f"{plan}.so")
    shape = bundle.manifest.model.input.shape
    sample = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    engine = HostEngine(library, bundle.manifest.plans[0].id)
    engine.train_step(sample, 1, 100, 1)
    start = time.perf_counter()
    for index in range(HOST_STEPS):
        engine.train_step(sample, index % 10, 100, 1)
    return HOST_STEPS / (time.perf_counter() - start)


def figures(plan: str, board: str) -> Figures:
    """Compiles, measures and times one published plan."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = time.perf_counter()
        bundle = compile_firmware(MODEL, board, [f"{PLANS}#{plan}"], None, folder / "bundle")
        seconds = time.perf_counter() - start
        measured = measure(folder / "bundle")
        report = bundle.report.plans[0]
        sram = report.sram_bytes
        without_link = sram.total - sram.link
        return Figures(
            plan=plan,
            state=str(bundle.manifest.plans[0].plan["state"]),
            step_instructions=measured.instructions.step,
            forward_instructions=measured.instructions.forward,
            sram_bytes=without_link,
            sram_measured_stack_bytes=without_link - sram.stack + measured.stack_high_water_bytes,
            sram_with_link_bytes=sram.total,
            arena_bytes=sram.arena,
            arena_lower_bound_bytes=report.arena_lower_bound_bytes,
            state_bytes=sram.state,
            flash_bytes=bundle.report.flash_bytes.total,
            weights_bytes=bundle.manifest.weights.bytes,
            line_bytes_down=bytes_down(bundle.manifest.weights.bytes),
            compile_seconds=seconds,
            host_steps_per_second=steps_per_second(bundle, plan, folder),
        )


def require_model() -> None:
    """Ends the program where the model isn't there, and says what to do."""
    if not MODEL.exists():
        raise SystemExit(f"{MODEL} isn't there; set TINYFLEET_SHARED to the shared folder")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", nargs="*", default=["49kb", "99kb", "148kb"])
    parser.add_argument("--board", default="stm32f746")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    require_model()
    results = []
    screen = console()
    for plan in options.plans:
        with screen.status(f"plan {plan}"):
            results.append(figures(plan, options.board))
    names = [name for name in asdict(results[0]) if name != "plan"]
    rows: list[list[object]] = [
        [name.replace("_", " "), *(getattr(result, name) for result in results)] for name in names
    ]
    screen.print(table("MCUNet-5FPS", ["figure", *(r.plan for r in results)], rows))
    missed = 0
    for result in results:
        if result.plan != "49kb":
            continue
        compared: list[list[object]] = []
        for name, (tiny_engine, most, aim) in WANTED.items():
            found = getattr(result, name)
            missed += found > most
            verdict = "aim" if found <= aim else "must" if found <= most else "missed"
            compared.append([name.replace("_", " "), tiny_engine, most, aim, found, verdict])
        titles = ["plan 49kb", "TinyEngine", "must", "aim", "here", "met"]
        screen.print(table("Beside TinyEngine", titles, compared))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
