"""The host engine beside PyTorch: the same model on one core of this machine, a batch of one.

Steps a second with the portable kernels and with those for each of the machine's vector units,
called from Python as ``codegen.firmware.host_engine`` does; PyTorch's are those of a float network
of the same layers (``benchmarks.simulator.torch_network``), in the faster of both memory layouts.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from codegen.compile import build_host_engine
from codegen.firmware.host_engine import HostEngine, choose_kernels, kernel_sets
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.program.lowering import lower
from codegen.program.plans import Plan, load_plan, resolve
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize
from fleet.cli._output import console, table
from tests.codegen import mcunet
from tests.simulator.conftest import DIGITS

RATE_Q20 = 2**20 // 1000
SEED = 7
SECONDS = 4.0
SECONDS_OF_A_TRY = 0.002
"""Short, so that some tries have the core for themselves where others use it as well."""


def per_second(call: Callable[[int], None]) -> float:
    """Calls a second in the best of many short tries, of one call at least."""
    calls, best, done = 1, 0.0, 0
    until = time.perf_counter() + SECONDS
    while (begun := time.perf_counter()) < until:
        for index in range(done, done + calls):
            call(index)
        taken = time.perf_counter() - begun
        best, done = max(best, calls / taken), done + calls
        calls = max(1, int(best * SECONDS_OF_A_TRY))
    return best


def rates(forward: Callable[[int], None], step: Callable[[int], None]) -> dict[str, float]:
    """Forward passes and training steps a second."""
    return {"forward": round(per_second(forward), 1), "step": round(per_second(step), 1)}


def host_rates(graph: Graph, plan: Plan, folder: Path) -> dict[str, dict[str, float]]:
    """Of the host engine, by set of kernels."""
    program = lower(graph, plan)
    library = build_host_engine((graph, [program]), folder / f"{plan.name}.so")
    engine = HostEngine(library, program.plan.id)
    random = np.random.default_rng(SEED)
    shape = graph.tensors[graph.input].shape
    samples = random.integers(-128, 128, (16, *shape)).astype(np.int8)
    classes = graph.head.weight.shape[0]

    def forward(index: int) -> None:
        engine.score(samples[index % 16], index % classes)

    def step(index: int) -> None:
        engine.train_step(samples[index % 16], index % classes, RATE_Q20, SEED)

    found = {}
    for name in kernel_sets(library):
        choose_kernels(library, name)
        engine.load()
        found[name] = rates(forward, step)
    return found


def torch_rates(graph: Graph, plan: Plan) -> dict[str, float]:
    """Of PyTorch on one thread."""
    from benchmarks.simulator.torch_network import workers

    both = [rates(*workers(graph, plan, channels_last=last)) for last in (False, True)]
    return {what: max(one[what] for one in both) for what in both[0]}


def processor() -> str:
    """What this machine computes with."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def cases() -> list[tuple[str, Graph, Plan]]:
    """What is measured; MCUNet where its model is there."""
    calibration = load_calibration(DIGITS / "calibration.npz")
    digits = quantize(import_model(DIGITS / "digits.onnx"), calibration)
    found = [
        ("digits", digits, resolve(load_plan(f"{DIGITS / 'plans.json'}#{name}"), digits))
        for name in ("middle", "full")
    ]
    if mcunet.MODEL.exists():
        found.append(("mcunet", mcunet.graph(), mcunet.plan("49kb")))
    else:
        print(f"mcunet is left out: {mcunet.MODEL} isn't there", file=sys.stderr)
    return found


def measure_part(options: Namespace) -> dict[str, Any]:
    """Rates by model and plan."""
    del options
    has_torch = find_spec("torch") is not None
    if not has_torch:
        print("PyTorch is left out: pip install torch", file=sys.stderr)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return _rates_of_cases(has_torch)
    finally:
        os.sched_setaffinity(0, cores)


def _rates_of_cases(has_torch: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"processor": processor()}
    with tempfile.TemporaryDirectory() as folder:
        for model, graph, plan in cases():
            of_engine: dict[str, Any] = host_rates(graph, plan, Path(folder))
            best = next(iter(of_engine.values()))
            if has_torch:
                of_engine["torch"] = torch_rates(graph, plan)
                of_engine["times_torch"] = {
                    what: round(best[what] / of_engine["torch"][what], 1) for what in best
                }
            found[f"{model} {plan.name}"] = of_engine
    return found


def print_part(found: dict[str, Any]) -> None:
    """Prints them as a table."""
    rows = [
        [case, name, f"{one['forward']:,}", f"{one['step']:,}"]
        for case, by_name in found.items()
        if case != "processor"
        for name, one in by_name.items()
    ]
    titles = ["model and plan", "kernels", "forward passes a second", "steps a second"]
    console().print(table(f"Host engine, one core of {found['processor']}", titles, rows))
