"""Personal tensors in generated C against the interpreter: the same bits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Graph
from codegen.program.lowering import lower
from codegen.program.plans import Plan, trained_tensors
from codegen.program.steps import Updates
from codegen.reference.interpreter import Interpreter
from tests.codegen.emit.test_engine import LEARNING_RATE, build
from tests.codegen.random_graphs import full_plan, random_graph
from tests.conftest import examples


def personalized(graph: Graph, plan: Plan, seed: int) -> Plan:
    """Some of the plan's tensors are personal; of the head both are, or none."""
    trained = trained_tensors(graph, plan)
    rng = np.random.default_rng(seed)
    chosen = {one for one in trained[:-2] if rng.random() < 0.5}
    if rng.random() < 0.7 or not chosen:
        chosen |= set(trained[-2:])
    if len(chosen) == len(trained):
        chosen.discard(trained[0])
    return replace(plan, personal=tuple(one for one in trained if one in chosen))


@given(seed=st.integers(0, 10_000))
@examples(3, HealthCheck.function_scoped_fixture)
def test_shared_and_personal_tensors_train_to_the_same_bits_as_the_interpreter(
    seed: int, tmp_path: Path
) -> None:
    graph, samples = random_graph(seed)
    plans = [
        personalized(graph, full_plan(graph), seed),
        personalized(graph, full_plan(graph, "int8-stochastic"), seed + 1),
        replace(personalized(graph, full_plan(graph), seed + 2), accumulate=2, momentum_q8=128),
    ]
    programs = [lower(graph, plan) for plan in plans]
    library = build(graph, programs, tmp_path / str(seed), sanitize=["undefined"])
    for program in programs:
        for updates in ("all", "shared", "personal"):
            trains_to_the_same_bits(
                Interpreter(program), HostEngine(library, program.plan.id), samples, updates
            )


def trains_to_the_same_bits(
    interpreter: Interpreter, engine: HostEngine, samples: np.ndarray, updates: Updates
) -> None:
    interpreter.updates = updates
    engine.set_updates(updates)
    classes = interpreter.graph.head.bias.size
    for step in range(5):
        interpreter.train_step(samples[step % len(samples)], step % classes, LEARNING_RATE, 7)
        engine.train_step(samples[step % len(samples)], step % classes, LEARNING_RATE, 7)
        assert np.array_equal(interpreter.logits, engine.logits), step
    whole = engine.delta()
    assert np.array_equal(interpreter.delta(), whole)
    shared = engine.delta(keeps_personal=True)
    assert np.array_equal(interpreter.delta(keeps_personal=True), shared)
    parts = np.split(whole, np.cumsum([one.values for one in interpreter.program.segments])[:-1])
    by_tensor = list(zip(interpreter.program.segments, parts, strict=True))
    # What is sent is what would be sent otherwise, without the personal values.
    sent = [part for segment, part in by_tensor if not segment.personal]
    assert np.array_equal(shared, np.concatenate(sent))
    for segment, part in by_tensor:
        if updates != "all" and segment.personal != (updates == "personal"):
            # Nothing but rounding, and that of a zero is a zero.
            assert not part.any(), segment.tensor


@given(seed=st.integers(0, 10_000))
@examples(2, HealthCheck.function_scoped_fixture)
def test_what_was_kept_is_laid_over_a_version_to_the_same_bits(seed: int, tmp_path: Path) -> None:
    graph, samples = random_graph(seed)
    plans = [
        personalized(graph, full_plan(graph), seed),
        personalized(graph, full_plan(graph, "int8-stochastic"), seed),
    ]
    programs = [lower(graph, plan) for plan in plans]
    library = build(graph, programs, tmp_path / str(seed), sanitize=["undefined"])
    for program in programs:
        trained = Interpreter(program)
        engine = HostEngine(library, program.plan.id)
        trains_to_the_same_bits(trained, engine, samples, "all")
        for personal_only in (True, False):
            kept = engine.kept(personal_only)
            segments = program.personal_segments if personal_only else program.segments
            assert len(kept) == program.kept_bytes(segments)
            for mix in (256, 192, 100, 0):
                engine.load()
                engine.lay_over(kept, personal_only, mix)
                fresh = Interpreter(program)
                fresh.lay_over(trained.kept(personal_only), mix)
                assert np.array_equal(fresh.delta(), engine.delta())
                if mix == 256:
                    assert engine.kept(personal_only) == kept
                if mix == 0:
                    assert not engine.delta().any()
            engine.load()
            engine.lay_over(engine.kept(personal_only), personal_only)  # of the version itself
            assert not engine.delta().any()
            trains_to_the_same_bits(Interpreter(program), engine, samples, "all")


def test_training_the_head_alone_stops_behind_it(tmp_path: Path) -> None:
    graph, _ = random_graph(5)
    plan = full_plan(graph)
    trained = trained_tensors(graph, plan)
    program = lower(graph, replace(plan, personal=tuple(trained[-2:])))
    library = build(graph, [program], tmp_path)
    source = (library.parent / "plan_0.c").read_text()
    backward = source[source.index("void plan_0_backward(tf_frame *frame)\n") :]
    before, after = backward.split("return;", 1)
    assert "convolution_weight_update" not in before
    assert "head" in before
    assert "weight" in after
