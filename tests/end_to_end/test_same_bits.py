"""Interpreter, host library and ARM image compute the same bits, whichever compiler built it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from codegen.compile import build_host_engine, compile_graph
from codegen.firmware.boards import load_board
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.program.blob import published_by
from codegen.program.lowering import lower
from codegen.program.plans import Plan, default_plans
from codegen.program.steps import Program
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.interpreter import Interpreter
from simulator.machines.image_engine import ImageEngine
from tests.codegen.random_graphs import (
    full_plan,
    random_picture_graph,
    random_plan,
    random_target_graph,
)
from tests.end_to_end.engines import assert_trains_to_the_same_bits, toolchain_or_skip

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
LEARNING_RATE = 2**20 // 100
STEPS = 100


@pytest.fixture(scope="module")
def digits() -> tuple[Graph, np.ndarray]:
    calibration = load_calibration(DIGITS / "calibration.npz")
    graph = quantize(import_model(DIGITS / "digits.onnx"), calibration)
    return graph, quantize_input(graph, np.moveaxis(calibration, 1, -1))


def plans_of(graph: Graph) -> list[Plan]:
    return [*default_plans(graph)[1:], full_plan(graph, "int8-stochastic")]


def error_bytes(program: Program) -> tuple[list[int], int]:
    """Bytes of the arena that hold error tensors when a step is over, and how many tensors.

    Scratch is left out: widened inputs lie in another order with DSP instructions.
    """
    last_writer: dict[int, str] = {}
    for buffer in sorted(program.buffers, key=lambda buffer: buffer.first):
        start = program.offsets[buffer.name]
        last_writer |= dict.fromkeys(range(start, start + buffer.bytes), buffer.name)
    owned = {at: name for at, name in last_writer.items() if name in program.error_index}
    return sorted(owned), len(set(owned.values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("board", "compiler"),
    [("stm32f746", "gcc"), ("stm32f746", "zig"), ("stm32f407", "gcc"), ("stm32f407", "zig")],
)
def test_a_hundred_steps_leave_the_same_state_everywhere(
    board: str, compiler: Literal["gcc", "zig"], digits: tuple[Graph, np.ndarray], tmp_path: Path
) -> None:
    graph, samples = digits
    toolchain = toolchain_or_skip(compiler)
    bundle = compile_graph(
        graph,
        load_board(board),
        plans_of(graph),
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
        toolchain=toolchain,
    )
    library = build_host_engine(bundle, tmp_path / "engine.so")
    labels = np.random.default_rng(0).integers(0, 10, STEPS)
    for plan in plans_of(graph):
        interpreter = Interpreter(lower(graph, plan))
        host = HostEngine(library, plan.id)
        with ImageEngine(bundle, plan.id) as image:
            for step in range(STEPS):
                sample, label = samples[step % len(samples)], int(labels[step])
                interpreter.train_step(sample, label, LEARNING_RATE, 5)
                host.train_step(sample, label, LEARNING_RATE, 5)
                image.train_step(sample, label, LEARNING_RATE, 5)
                assert np.array_equal(interpreter.logits, host.logits), (plan.name, step)
                assert np.array_equal(host.logits, image.logits), (plan.name, step)
                assert interpreter.loss_q16 == host.loss_q16 == image.loss_q16
            assert image.state == host.state, plan.name
            errors, kept = error_bytes(interpreter.program)
            assert kept > 0, plan.name
            assert [image.arena[i] for i in errors] == [host.arena[i] for i in errors], plan.name
        assert np.array_equal(interpreter.delta(), host.delta()), plan.name


@pytest.mark.parametrize(("loss", "compiler"), [("binary", "gcc"), ("mse", "zig")])
def test_yes_or_no_and_targets_leave_the_same_state_everywhere(
    loss: Literal["binary", "mse"], compiler: Literal["gcc", "zig"], tmp_path: Path
) -> None:
    graph, samples = random_target_graph(5, loss)
    assert graph.head.bias.size > 1
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, 3)],
        samples,
        [step % 4 for step in range(12)],
        board="stm32f746",
        toolchain=toolchain_or_skip(compiler),
        folder=tmp_path,
    )


@pytest.mark.parametrize(("board", "compiler"), [("stm32f746", "gcc"), ("stm32f407", "zig")])
def test_codes_as_outputs_leave_the_same_state_everywhere(
    board: str, compiler: Literal["gcc", "zig"], tmp_path: Path
) -> None:
    graph, samples = random_picture_graph(6)
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, 3)],
        samples,
        [0] * 8,
        board=board,
        toolchain=toolchain_or_skip(compiler),
        folder=tmp_path,
    )


@pytest.mark.parametrize("board", ["stm32f746", "stm32f407"])
def test_a_plan_over_frozen_tensors_leaves_the_same_state_everywhere(
    board: str, digits: tuple[Graph, np.ndarray], tmp_path: Path
) -> None:
    graph, samples = digits
    assert_trains_to_the_same_bits(
        graph,
        default_plans(graph)[:2],
        samples,
        np.random.default_rng(1).integers(0, 10, 12).tolist(),
        board=board,
        toolchain=find_toolchain(),
        folder=tmp_path,
    )


@pytest.mark.parametrize("names", [["small", "middle", "full"], ["middle"]])
def test_the_factory_weights_of_the_image_are_the_blob(
    names: list[str], digits: tuple[Graph, np.ndarray], tmp_path: Path
) -> None:
    graph, _ = digits
    plans = [plan for plan in default_plans(graph) if plan.name in names]
    bundle = compile_graph(
        graph,
        load_board("stm32f746"),
        plans,
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
        toolchain=find_toolchain(),
    )
    data = published_by(graph, plans).published.pack()
    assert (tmp_path / "bundle" / "weights.bin").read_bytes() == data
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["weights"]["bytes"] == len(data)
    assert bundle.manifest.bundle_id == manifest["bundle_id"]
    assert manifest["coordinates"] == (37_142 if "full" in names else 9_074)
