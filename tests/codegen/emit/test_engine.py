"""Generated C against the interpreter: the same bits, for any graph and any plan."""

import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from codegen.emit.sources import emit
from codegen.errors import ModelError
from codegen.firmware.host_engine import HostEngine
from codegen.graph.floats import Clamp, FloatConv, FloatGraph, FloatHead, FloatOp
from codegen.graph.ir import Graph, Head, Padding, TensorOutput, label_count
from codegen.host_toolchain import host_toolchain
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.max_pool import MaxPool
from codegen.operators.requantize import FloatClamp
from codegen.program.blob import Blob, all_published, published_by
from codegen.program.lowering import lower
from codegen.program.plans import Plan, default_plans
from codegen.program.steps import Program
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.float_autodiff import cosines
from codegen.reference.interpreter import Interpreter
from device_runtime import engine_sources, include_directories
from tests.codegen.random_graphs import (
    full_plan,
    padded_graph,
    random_gated_graph,
    random_graph,
    random_picture_graph,
    random_plan,
    random_pooled_graph,
    random_recurrent_graph,
    random_target_graph,
)
from tests.conftest import examples

LEARNING_RATE = 2**20 // 50


def build(
    graph: Graph, programs: list[Program], folder: Path, sanitize: Sequence[str] = ()
) -> Path:
    folder.mkdir(exist_ok=True)
    weights = published_by(graph, [program.plan for program in programs])
    for name, text in emit(graph, programs, weights, "00" * 32).items():
        (folder / name).write_text(text)
    built = host_toolchain().build_host(
        [*folder.glob("*.c"), *engine_sources()],
        include_dirs=[folder, *include_directories()],
        output=folder / "engine.so",
        sanitize=sanitize,
    )
    return built.output


def assert_same_bits(
    interpreter: Interpreter, engine: HostEngine, samples: np.ndarray, steps: int
) -> None:
    ending = interpreter.graph.ending
    labels = label_count(ending.loss, ending.outputs)
    for step in range(steps):
        sample, label = samples[step % len(samples)], step % labels
        if isinstance(ending, TensorOutput):  # there until a training step needs the room
            engine.score(sample, label)
            outputs = engine.logits
        interpreter.train_step(sample, label, LEARNING_RATE, 99)
        engine.train_step(sample, label, LEARNING_RATE, 99)
        if isinstance(ending, Head):
            outputs = engine.logits
        assert np.array_equal(interpreter.logits, outputs), step
        assert interpreter.loss_q16 == engine.loss_q16, step
    assert np.array_equal(interpreter.delta(), engine.delta())


@given(seed=st.integers(0, 10_000))
@examples(8, HealthCheck.function_scoped_fixture)
def test_random_graphs_train_to_the_same_bits_as_the_interpreter(seed: int, tmp_path: Path) -> None:
    graph, samples = random_graph(seed)
    plans = [full_plan(graph), full_plan(graph, "int8-stochastic"), random_plan(graph, seed)]
    programs = [lower(graph, plan) for plan in plans]
    library = build(graph, programs, tmp_path / str(seed))
    for program in programs:
        engine = HostEngine(library, program.plan.id)
        assert_same_bits(Interpreter(program), engine, samples, steps=6)


@pytest.mark.parametrize("make", [random_pooled_graph, random_gated_graph])
@given(seed=st.integers(0, 10_000))
@examples(10, HealthCheck.function_scoped_fixture)
def test_graphs_of_pools_and_branches_train_to_the_same_bits(
    make: Callable[[int], tuple[Graph, np.ndarray]], seed: int, tmp_path: Path
) -> None:
    graph, samples = make(seed)
    programs = [lower(graph, full_plan(graph)), lower(graph, random_plan(graph, seed))]
    library = build(graph, programs, tmp_path / str(seed), sanitize=["undefined"])
    for program in programs:
        engine = HostEngine(library, program.plan.id)
        assert_same_bits(Interpreter(program), engine, samples, steps=4)


@given(seed=st.integers(0, 10_000))
@examples(3, HealthCheck.function_scoped_fixture)
def test_recurrent_cells_train_to_the_same_bits(seed: int, tmp_path: Path) -> None:
    graph, samples = random_recurrent_graph(seed)
    programs = [lower(graph, full_plan(graph)), lower(graph, random_plan(graph, seed))]
    library = build(graph, programs, tmp_path / str(seed), sanitize=["undefined"])
    for program in programs:
        engine = HostEngine(library, program.plan.id)
        assert_same_bits(Interpreter(program), engine, samples, steps=4)


@given(seed=st.integers(0, 10_000))
@examples(8, HealthCheck.function_scoped_fixture)
def test_other_weights_than_the_factorys_are_loaded_over_the_frozen_ones(
    seed: int, tmp_path: Path
) -> None:
    graph, samples = random_graph(seed)
    programs = [lower(graph, random_plan(graph, seed + i)) for i in range(2)]
    published = published_by(graph, [program.plan for program in programs]).published
    rng = np.random.default_rng(seed)
    other = Blob(
        tuple(
            dataclasses.replace(tensor, values=rng.permutation(tensor.values))
            for tensor in published.tensors
        )
    ).pack()
    library = build(graph, programs, tmp_path / str(seed))
    for program in programs:
        engine = HostEngine(library, program.plan.id, other)
        assert_same_bits(Interpreter(program, published.unpack(other)), engine, samples, steps=4)


@pytest.mark.parametrize("padding", [(0, 0, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0), (1, 0, 0, 2)])
def test_kernels_of_one_tap_with_padding_train_to_the_same_bits(
    padding: tuple[int, int, int, int], tmp_path: Path
) -> None:
    graph, samples = padded_graph(Padding(*padding))
    frozen = Plan("head", (), (), True, "q8.8")
    programs = [lower(graph, plan) for plan in (frozen, full_plan(graph), random_plan(graph, 1))]
    chained = {call.op.name for step in programs[0].steps for call in step.stages}
    assert {"second", "third"} <= chained  # in rings of rows
    library = build(graph, programs, tmp_path, sanitize=["undefined"])
    for program in programs:
        engine = HostEngine(library, program.plan.id)
        assert_same_bits(Interpreter(program), engine, samples, steps=4)


@pytest.mark.parametrize("loss", ["binary", "mse"])
@given(seed=st.integers(0, 10_000))
@examples(4, HealthCheck.function_scoped_fixture)
def test_yes_or_no_and_targets_are_trained_to_the_same_bits(
    loss: Literal["binary", "mse"], seed: int, tmp_path: Path
) -> None:
    graph, samples = random_target_graph(seed, loss)
    programs = [lower(graph, full_plan(graph)), lower(graph, random_plan(graph, seed))]
    library = build(graph, programs, tmp_path / f"{loss}{seed}", sanitize=["undefined"])
    for program in programs:
        interpreter, engine = Interpreter(program), HostEngine(library, program.plan.id)
        assert_same_bits(interpreter, engine, samples, steps=6)
        assert interpreter.score(samples[0], 0) == engine.score(samples[0], 0)


def test_a_reconstruction_trains_to_the_same_bits(tmp_path: Path) -> None:
    graph, samples = random_pooled_graph(4, "mse")
    program = lower(graph, full_plan(graph))
    engine = HostEngine(build(graph, [program], tmp_path), program.plan.id)
    assert_same_bits(Interpreter(program), engine, samples, steps=12)


@given(seed=st.integers(0, 10_000))
@examples(4, HealthCheck.function_scoped_fixture)
def test_codes_as_outputs_are_the_interpreters_and_train_to_the_same_bits(
    seed: int, tmp_path: Path
) -> None:
    graph, samples = random_picture_graph(seed)
    programs = [lower(graph, full_plan(graph)), lower(graph, random_plan(graph, seed))]
    library = build(graph, programs, tmp_path / f"picture{seed}", sanitize=["undefined"])
    for program in programs:
        assert_same_bits(
            Interpreter(program), HostEngine(library, program.plan.id), samples, steps=6
        )


def test_a_network_without_a_loss_gives_its_pictures(tmp_path: Path) -> None:
    trained, samples = random_picture_graph(3)
    ending = dataclasses.replace(trained.ending, loss="none")
    graph = dataclasses.replace(trained, ops=(*trained.ops[:-1], ending))
    program = lower(graph, default_plans(graph)[0])
    assert program.pool_bytes < lower(trained, full_plan(trained)).pool_bytes
    interpreter = Interpreter(program)
    engine = HostEngine(build(graph, [program], tmp_path), program.plan.id)
    for sample in samples[:4]:
        interpreter.score(sample, 0)
        engine.score(sample, 0)
        assert np.array_equal(interpreter.logits, engine.logits)
    assert np.ptp(engine.logits) > 10


def test_activations_of_their_own_are_streamed_with_the_layers_around_them(tmp_path: Path) -> None:
    # As models have them whose activations are coded symmetrically.
    rng = np.random.default_rng(2)
    shapes = {"x": (3, 12, 9)}
    ops: list[FloatOp] = []
    last = "x"
    for name, groups, outputs, size in (("a", 1, 8, 1), ("b", 8, 8, 3), ("c", 1, 4, 1)):
        inputs = shapes[last][0] // groups
        weight = rng.normal(0, 0.5, (outputs, inputs, size, size))
        pad = Padding(*(size // 2 for _ in range(4)))
        ops.append(FloatConv(name, last, f"{name}.y", weight, np.zeros(outputs), groups,
                             padding=pad))  # fmt: skip
        ops.append(FloatClamp(f"{name}_relu", f"{name}.y", f"{name}.r", Clamp(low=0.0)))
        shapes |= {f"{name}.y": (outputs, 12, 9), f"{name}.r": (outputs, 12, 9)}
        last = f"{name}.r"
    shapes["p.y"] = (4, 1, 1)
    ops.append(GlobalAveragePool("p", last, "p.y"))
    ops.append(FloatHead("head", "p.y", "logits", rng.normal(size=(5, 4)), np.zeros(5)))
    samples = rng.normal(0, 1, (8, *shapes["x"])).astype(np.float32)
    graph = quantize(FloatGraph("bends", "x", shapes, tuple(ops)), samples)
    frozen = Plan("head", (), (), True, "q8.8")
    programs = [lower(graph, frozen), lower(graph, full_plan(graph))]
    chained = {call.kernel for step in programs[0].steps for call in step.stages}
    assert "requantize_forward" in chained
    assert programs[0].arena_bytes < 2 * 8 * 12 * 9  # two of the tensors that were streamed
    library = build(graph, programs, tmp_path, sanitize=["undefined"])
    codes = quantize_input(graph, np.moveaxis(samples, 1, -1))
    for program in programs:
        engine = HostEngine(library, program.plan.id)
        assert_same_bits(Interpreter(program), engine, codes, steps=4)


def test_windows_of_more_than_256_positions_find_the_first_of_the_largest(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    shapes = {"x": (2, 20, 17), "c.y": (3, 20, 17), "p.y": (3, 1, 1)}
    ops = (
        FloatConv("c", "x", "c.y", rng.normal(size=(3, 2, 1, 1)), np.zeros(3)),
        MaxPool("p", "c.y", "p.y", (20, 17), (20, 17)),
        FloatHead("head", "p.y", "logits", rng.normal(size=(4, 3)), np.zeros(4)),
    )
    samples = rng.normal(0, 1, (8, 2, 20, 17)).astype(np.float32)
    graph = quantize(FloatGraph("wide", "x", shapes, ops), samples)
    program = lower(graph, full_plan(graph))
    interpreter = Interpreter(program)
    engine = HostEngine(build(graph, [program], tmp_path), program.plan.id)
    codes = quantize_input(graph, np.moveaxis(samples, 1, -1))
    assert_same_bits(interpreter, engine, codes, steps=4)
    assert min(cosines(interpreter, 3).values()) >= 0.99


def test_long_signals_of_one_row_train_to_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    shapes = {"x": (3, 1, 700), "c.y": (6, 1, 700), "d.y": (6, 1, 700), "p.y": (6, 1, 1)}
    around = Padding(0, 2, 0, 2)
    ops = (
        FloatConv("c", "x", "c.y", rng.normal(size=(6, 3, 1, 5)), np.zeros(6), padding=around),
        FloatConv("d", "c.y", "d.y", rng.normal(size=(6, 1, 1, 5)), np.zeros(6), groups=6,
                  padding=around),
        GlobalAveragePool("p", "d.y", "p.y"),
        FloatHead("head", "p.y", "logits", rng.normal(size=(4, 6)), np.zeros(4)),
    )  # fmt: skip
    samples = (rng.normal(0, 1, (8, 3, 1, 700)) + 0.3).astype(np.float32)
    graph = quantize(FloatGraph("long", "x", shapes, ops), samples)
    program = lower(graph, full_plan(graph))
    interpreter = Interpreter(program)
    library = build(graph, [program], tmp_path, sanitize=["undefined"])
    engine = HostEngine(library, program.plan.id)
    codes = quantize_input(graph, np.moveaxis(samples, 1, -1))
    interpreter.train_step(codes[0], 0, LEARNING_RATE, 99)
    assert min(cosines(interpreter, 0).values()) >= 0.999
    assert_same_bits(Interpreter(program), engine, codes, steps=4)


def test_a_kernel_too_large_for_its_field_is_refused_by_name() -> None:
    rng = np.random.default_rng(4)
    shapes = {"x": (1, 1, 300), "d.y": (4, 1, 1)}
    ops = (
        FloatConv("dense", "x", "d.y", rng.normal(size=(4, 1, 1, 300)), np.zeros(4)),
        FloatHead("head", "d.y", "logits", rng.normal(size=(4, 4)), np.zeros(4)),
    )
    graph = quantize(
        FloatGraph("f", "x", shapes, ops), rng.normal(size=(8, 1, 1, 300)).astype(np.float32)
    )
    with pytest.raises(ModelError, match=r"layer dense: kernel \[1, 300\].*pool before it"):
        emit(graph, [lower(graph, full_plan(graph))], all_published(graph), "00" * 32)


def test_a_layer_wider_than_32_bit_sums_gives_the_same_bits(tmp_path: Path) -> None:
    graph, samples = random_graph(21, size=20)
    programs = [lower(graph, full_plan(graph))]
    library = build(graph, programs, tmp_path)
    engine = HostEngine(library, programs[0].plan.id)
    assert_same_bits(Interpreter(programs[0]), engine, samples, steps=3)


def test_loading_again_starts_from_the_blob(tmp_path: Path) -> None:
    graph, samples = random_graph(7)
    program = lower(graph, full_plan(graph))
    engine = HostEngine(build(graph, [program], tmp_path), program.plan.id)
    engine.train_step(samples[0], 0, LEARNING_RATE, 1)
    assert engine.delta().any()
    engine.load()
    assert not engine.delta().any()


def test_a_pool_that_is_too_small_is_refused(tmp_path: Path) -> None:
    graph, _ = random_graph(7)
    program = lower(graph, full_plan(graph))
    engine = HostEngine(build(graph, [program], tmp_path), program.plan.id)
    assert len(engine._pool) == program.pool_bytes
    engine._pool = ctypes.create_string_buffer(program.pool_bytes - 1)
    with pytest.raises(AssertionError):
        engine.load()


def test_training_at_absurd_rates_has_no_undefined_behaviour(tmp_path: Path) -> None:
    # The sanitizer ends the process at the first overflow, wild shift or misaligned access.
    graph, samples = random_graph(13)
    programs = [lower(graph, full_plan(graph)), lower(graph, full_plan(graph, "int8-stochastic"))]
    library = build(graph, programs, tmp_path, sanitize=["undefined"])
    for program in programs:
        interpreter = Interpreter(program)
        engine = HostEngine(library, program.plan.id)
        for step, rate in enumerate([0, 1, 2**20, 2**31, 2**32 - 1, LEARNING_RATE]):
            interpreter.train_step(samples[step], 0, rate, 3)
            engine.train_step(samples[step], 0, rate, 3)
            assert interpreter.loss_q16 == engine.loss_q16, rate
        assert np.array_equal(interpreter.delta(), engine.delta())
