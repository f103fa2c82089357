"""The example as a whole: the lab's model fails on drifted sensors, and its plans repair that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.compile import build_host_engine
from codegen.firmware.host_engine import HostEngine
from codegen.graph import ir
from codegen.importer.model import import_model
from codegen.program.blob import Blob, published_by
from codegen.program.lowering import lower
from codegen.program.plans import load_plan, resolve
from codegen.program.steps import Program
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from simulator.world.digits import DeviceSamples, deal

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
NAMES = [f"mcu-{number:02}" for number in range(1, 25)]
LEARNING_RATE_Q20 = round(0.02 * 2**20)
SEED = 1


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    return quantize(
        import_model(EXAMPLE / "digits.onnx"), load_calibration(EXAMPLE / "calibration.npz")
    )


@pytest.fixture(scope="module")
def programs(graph: ir.Graph) -> dict[str, Program]:
    names = ("small", "middle", "full")
    return {
        name: lower(graph, resolve(load_plan(f"{EXAMPLE / 'plans.json'}#{name}"), graph))
        for name in names
    }


def median_accuracy(graph: ir.Graph, devices: list[DeviceSamples]) -> float:
    scores = []
    for device in devices:
        held = device.held_out
        logits = simulate(graph, quantize_input(graph, device.x[held]))[graph.head.name]
        scores.append(np.mean(logits.argmax(axis=1) == device.y[held]))
    return float(np.median(scores))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_labs_model_is_good_until_sensors_drift(graph: ir.Graph, seed: int) -> None:
    assert median_accuracy(graph, deal(NAMES, seed, drifted=False)) >= 0.9
    assert 0.4 <= median_accuracy(graph, deal(NAMES, seed)) <= 0.7


def coordinates(program: Program) -> set[tuple[str, int]]:
    """Tensor and position on its last axis of everything that a plan trains."""
    return {
        (segment.tensor, channel) for segment in program.segments for channel in segment.channels
    }


def test_the_plans_differ_in_what_they_train_and_cost(programs: dict[str, Program]) -> None:
    small, middle, full = (programs[name] for name in ("small", "middle", "full"))
    assert small.macs_backward < middle.macs_backward < full.macs_backward
    assert small.state_bytes < middle.state_bytes < full.state_bytes
    assert small.delta_values < middle.delta_values < full.delta_values == 37142
    assert coordinates(small) < coordinates(middle) < coordinates(full), "each holds the last"
    assert small.pool_bytes < middle.pool_bytes < full.pool_bytes < 100_000


def averaged(
    published: Blob, weights: bytes, program: Program, deltas: NDArray[np.float64]
) -> bytes:
    """``weights`` plus the mean delta, in whole steps as devices hold them."""
    values = published.unpack(weights)
    kinds = {tensor.name: tensor for tensor in published.tensors}
    for segment in program.segments:
        tensor = kinds[segment.tensor]
        steps = values[segment.tensor].astype(np.float64)
        part = deltas[segment.first_value : segment.first_value + segment.values]
        unit = 2.0**segment.shift / (256 if tensor.values.dtype == np.int8 else 1)
        trained = np.s_[..., list(segment.channels)]
        steps[trained] += part.reshape(steps[trained].shape) * unit
        moved = np.clip(np.rint(steps), -tensor.limit, tensor.limit)
        values[segment.tensor] = moved.astype(np.int64)
    return Blob(
        tuple(
            replace(tensor, values=values[tensor.name].astype(tensor.values.dtype))
            for tensor in published.tensors
        )
    ).pack()


@pytest.mark.parametrize("plan", ["small", "middle"])
def test_three_rounds_of_a_sparse_plan_win_ten_points(
    graph: ir.Graph, programs: dict[str, Program], plan: str, tmp_path: Path
) -> None:
    program = programs[plan]
    library = build_host_engine((graph, [program]), tmp_path / "engine.so")
    engine = HostEngine(library, program.plan.id)
    devices = deal(NAMES, SEED)
    codes = [quantize_input(graph, device.x) for device in devices]
    published = published_by(graph, [program.plan]).published
    weights = published.pack()

    def median() -> float:
        engine.load(weights)
        return float(
            np.median(
                [
                    np.mean([engine.score(samples[i], int(device.y[i])) == device.y[i]
                             for i in np.flatnonzero(device.held_out)])
                    for samples, device in zip(codes, devices, strict=True)
                ]
            )
        )  # fmt: skip

    before = median()
    for _ in range(3):
        total, count = np.zeros(program.delta_values), 0
        for samples, device in zip(codes, devices, strict=True):
            engine.load(weights)
            train = np.flatnonzero(~device.held_out)
            for index in train:
                engine.train_step(samples[index], int(device.y[index]), LEARNING_RATE_Q20, SEED)
            total += len(train) * engine.delta()
            count += len(train)
        weights = averaged(published, weights, program, total / count)
    assert median() >= before + 0.1
