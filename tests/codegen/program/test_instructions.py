"""Estimated instructions: every kernel has its rates, and what is counted is not far off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from codegen.compile import compile_model
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.plan_search.candidates import channel_counts
from codegen.program.instructions import estimated_instructions, instructions_of
from codegen.program.lowering import lower
from codegen.program.plans import Plan, WeightUpdate, load_plan, resolve
from codegen.quantization.model import quantize_model
from simulator.machines.measure import measure
from tests.codegen import mcunet
from tests.codegen.mcunet import needs_mcunet
from tests.codegen.random_graphs import (
    full_plan,
    random_gated_graph,
    random_graph,
    random_plan,
    random_pooled_graph,
    random_recurrent_graph,
)

ROOT = Path(__file__).parents[3]
CDDL = ROOT / "fleet" / "protocol" / "tinyfleet.cddl"
DIGITS = ROOT / "examples" / "digits"

needs_gcc = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="the rates are those of arm-none-eabi-gcc"
)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "make", [random_graph, random_pooled_graph, random_gated_graph, random_recurrent_graph]
)
def test_every_step_of_every_program_takes_instructions(
    make: Callable[[int], tuple[Graph, object]], seed: int
) -> None:
    graph, _ = make(seed)
    for plan in (full_plan(graph), random_plan(graph, seed)):
        program = lower(graph, plan)
        parts = [instructions_of(program, step) for step in program.steps]
        assert min(parts) > 0
        assert estimated_instructions(program) == pytest.approx(sum(parts), abs=1)


def of_channels(graph: Graph, count: int) -> int:
    """Estimate where so many channels of the last layer are trained, and all biases."""
    full = full_plan(graph)
    weights = (WeightUpdate(graph.convolutions[-1].name, tuple(range(count))),)
    return estimated_instructions(lower(graph, replace(full, weights=weights if count else ())))


@pytest.mark.parametrize("seed", range(6))
def test_training_more_takes_more_instructions(seed: int) -> None:
    graph, _ = random_graph(seed)
    # Channel by channel it isn't so: a layer that trains as a whole needn't be put together.
    counts = [of_channels(graph, count) for count in (0, *channel_counts(graph.convolutions[-1]))]
    assert counts == sorted(set(counts))
    head = Plan("head", (), (), True, "q8.8")
    assert estimated_instructions(lower(graph, head)) < counts[0]


def counted_and_estimated(
    model: Path, plan: str, calibration: Path | None, folder: Path
) -> tuple[int, int]:
    bundle = compile_model(
        model, "stm32f746", [plan], calibration, folder, CDDL, find_toolchain("gcc")
    )
    graph = quantize_model(import_model(model), calibration).graph
    program = lower(graph, resolve(load_plan(plan), graph))
    return measure(bundle.path).instructions.step, estimated_instructions(program)


@needs_gcc
@pytest.mark.slow
@needs_mcunet
def test_mcunet_takes_what_is_estimated(tmp_path: Path) -> None:
    plan = f"{mcunet.PLANS}#49kb"
    counted, estimated = counted_and_estimated(mcunet.MODEL, plan, None, tmp_path)
    assert estimated == pytest.approx(counted, rel=0.03)


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "middle", "full"])
def test_even_tiny_layers_take_about_what_is_estimated(name: str, tmp_path: Path) -> None:
    plan, calibration = f"{DIGITS / 'plans.json'}#{name}", DIGITS / "calibration.npz"
    counted, estimated = counted_and_estimated(DIGITS / "digits.onnx", plan, calibration, tmp_path)
    assert estimated == pytest.approx(counted, rel=0.1)
