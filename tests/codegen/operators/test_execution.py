"""What a report simulates is what interpreter and engine compute: one arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from codegen.arithmetic.layers import logit_scale
from codegen.compile import build_host_engine
from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Graph
from codegen.importer.model import import_proto
from codegen.program.lowering import lower
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from codegen.reference.float_autodiff import forward_integers
from codegen.reference.interpreter import Interpreter
from tests.codegen.quantized_network import random_quantized
from tests.codegen.random_graphs import (
    full_plan,
    random_gated_graph,
    random_graph,
    random_pooled_graph,
)
from tests.conftest import examples


def quantized_file(seed: int) -> tuple[Graph, np.ndarray]:
    model, x = random_quantized(seed)
    graph = quantize(import_proto(model), None)
    return graph, quantize_input(graph, np.moveaxis(x, 1, -1))


MAKERS = [random_graph, random_pooled_graph, random_gated_graph, quantized_file]


@pytest.mark.parametrize("make", MAKERS)
@given(seed=st.integers(0, 10_000))
@examples(6, HealthCheck.function_scoped_fixture)
def test_simulation_interpreter_and_engine_give_the_same_integers(
    make: Callable[[int], tuple[Graph, np.ndarray]], seed: int, tmp_path: Path
) -> None:
    graph, samples = make(seed)
    samples = samples[:4]
    program = lower(graph, full_plan(graph))
    library = build_host_engine((graph, [program]), tmp_path / f"{make.__name__}-{seed}.so")
    engine, interpreter = HostEngine(library, program.plan.id), Interpreter(program)
    simulated = simulate(graph, samples)
    logits = np.rint(simulated[graph.head.name] / logit_scale(graph)).astype(np.int64)
    for index, sample in enumerate(samples):
        engine.score(sample, 0)
        interpreter.score(sample, 0)
        assert np.array_equal(engine.logits, interpreter.logits)
        assert np.array_equal(logits[index], interpreter.logits)
        known, _ = forward_integers(interpreter)
        for op in graph.ops[:-1]:
            tensor = graph.tensors[op.output]
            codes = np.rint(simulated[op.output][index] / tensor.scale) + tensor.zero_point
            assert np.array_equal(np.moveaxis(codes, 0, -1), known[op.output]), op.name


def test_many_samples_at_once_are_as_one_after_the_other() -> None:
    graph, samples = random_pooled_graph(11)
    together = simulate(graph, samples[:5])
    for index in range(5):
        alone = simulate(graph, samples[index : index + 1])
        for name, values in alone.items():
            assert np.array_equal(values[0], together[name][index]), name
