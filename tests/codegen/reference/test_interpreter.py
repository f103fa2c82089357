"""The interpreter against exact arithmetic: forward, gradients, updates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.layers import logit_scale
from codegen.graph.ir import Conv, DepthwiseConv, Graph, inputs_of
from codegen.operators import operator_of
from codegen.operators.add import Add
from codegen.operators.average_pool import AveragePool
from codegen.operators.functions import evaluated
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.lookup import Lookup
from codegen.operators.rearrange import Rearrange
from codegen.program.lowering import lower
from codegen.reference.float_autodiff import cosines, forward_integers
from codegen.reference.interpreter import Interpreter
from tests.codegen.random_graphs import (
    full_plan,
    random_gated_graph,
    random_graph,
    random_picture_graph,
    random_pooled_graph,
    random_recurrent_graph,
    random_target_graph,
)
from tests.codegen.real_arithmetic import real_output
from tests.conftest import examples

LEARNING_RATE = 2**20 // 50


def exact_output(graph: Graph, op: object, known: dict[str, np.ndarray]) -> np.ndarray:
    """What the operation gives in real arithmetic on given codes, before rounding."""
    tensors = graph.tensors

    def real(name: str) -> np.ndarray:
        return (known[name] - tensors[name].zero_point) * tensors[name].scale

    if isinstance(op, Add):
        value, name = real(op.inputs[0]) + real(op.inputs[1]), op.output
    elif isinstance(op, Lookup):
        value, name = evaluated(op.function, real(op.input))[0], op.output
    elif isinstance(op, (AveragePool, Rearrange)):
        picture = [real(op.input).transpose(2, 0, 1)[None]]
        value, name = operator_of(op).evaluate(op, picture)[0], op.output
        value = value.transpose(1, 2, 0)
    elif isinstance(op, GlobalAveragePool):
        return known[op.input].mean(axis=(0, 1))[None, None, :]
    else:
        assert isinstance(op, (Conv, DepthwiseConv))
        name, pad = op.output, op.padding
        source = np.pad(real(op.input), ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0)))
        weight = op.weight.astype(float)
        rows, columns = weight.shape[1:3] if isinstance(op, Conv) else weight.shape[:2]
        height, width, channels = tensors[name].shape
        value = np.zeros((height, width, channels))
        for y in range(height):
            for x in range(width):
                top, left = y * op.stride[0], x * op.stride[1]
                seen = source[top : top + rows, left : left + columns]
                term = "hwi,ohwi->o" if isinstance(op, Conv) else "hwc,hwc->c"
                value[y, x] = np.einsum(term, seen, weight)
        value = (value + op.bias * tensors[op.input].scale) * op.weight_scale
    return value / tensors[name].scale + tensors[name].zero_point


@given(seed=st.integers(0, 10_000))
@examples(25)
def test_forward_differs_from_exact_arithmetic_by_rounding_only(seed: int) -> None:
    graph, samples = random_graph(seed)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    interpreter.score(samples[0], 0)
    known, _ = forward_integers(interpreter)
    for op in graph.ops[:-1]:
        exact = exact_output(graph, op, known)
        got = known[op.output]
        inside = np.clip(exact, -128, 127)
        # Half a step of rounding, and a hair for the 31-bit multiplier.
        assert np.abs(got - inside).max() <= 0.5 + 1e-3, op.name


@pytest.mark.parametrize(
    "make", [random_graph, random_pooled_graph, random_gated_graph, random_recurrent_graph]
)
@given(seed=st.integers(0, 10_000))
@examples(15)
def test_gradients_have_cosine_above_0_999_to_float_autodiff(
    make: Callable[[int], tuple[Graph, np.ndarray]], seed: int
) -> None:
    graph, samples = make(seed)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    label = seed % graph.head.bias.size
    interpreter.train_step(samples[0], label, LEARNING_RATE, seed)
    for name, cosine in cosines(interpreter, label).items():
        assert cosine >= 0.999, name


@pytest.mark.parametrize("make", [random_pooled_graph, random_gated_graph])
@given(seed=st.integers(0, 10_000))
@examples(20)
def test_pools_and_branches_differ_from_exact_arithmetic_by_one_rounding(
    make: Callable[[int], tuple[Graph, np.ndarray]], seed: int
) -> None:
    graph, samples = make(seed)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    interpreter.score(samples[0], 0)
    known, _ = forward_integers(interpreter)
    for op in graph.ops[:-1]:
        inputs = [
            graph.tensors[name].scale * (known[name] - graph.tensors[name].zero_point)
            for name in inputs_of(op)
        ]
        tensor = graph.tensors[op.output]
        exact = real_output(graph, op, [np.moveaxis(x, -1, 0)[None] for x in inputs])
        codes = np.rint(np.moveaxis(exact[0], 0, -1) / tensor.scale) + tensor.zero_point
        difference = np.abs(known[op.output] - codes)
        # Means of few codes in their own scale often lie on a half, which both round their way.
        assert difference.max() <= 1, op.name
        if not isinstance(op, AveragePool):
            assert (difference > 0).mean() <= 0.05, op.name


def test_loss_of_a_reconstruction_is_the_mean_squared_error_in_real_units() -> None:
    for seed in range(12):
        graph, samples = random_pooled_graph(seed, "mse")
        interpreter = Interpreter(lower(graph, full_plan(graph)))
        interpreter.score(samples[0], 0)
        tensor = graph.tensors[graph.input]
        wanted = tensor.scale * (samples[0].ravel().astype(float) - tensor.zero_point)
        got = interpreter.logits * logit_scale(graph)
        expected = np.mean((got - wanted) ** 2)
        assert interpreter.loss_q16 / 2**16 == pytest.approx(expected, rel=2e-3)


def test_codes_as_outputs_have_the_loss_and_the_gradients_of_real_arithmetic() -> None:
    for seed in range(16):
        graph, samples = random_picture_graph(seed)
        interpreter = Interpreter(lower(graph, full_plan(graph)))
        interpreter.train_step(samples[0], 0, 0, 5)
        tensor = graph.tensors[graph.input]
        wanted = tensor.scale * (samples[0].ravel().astype(float) - tensor.zero_point)
        expected = np.mean((interpreter.logits * logit_scale(graph) - wanted) ** 2)
        assert interpreter.loss_q16 / 2**16 == pytest.approx(expected, rel=2e-3)
        assert min(cosines(interpreter, 0).values()) >= 0.999


@pytest.mark.parametrize(
    ("graph", "samples"), [random_pooled_graph(3, "mse"), random_picture_graph(12)]
)
def test_training_a_reconstruction_lowers_its_error(graph: Graph, samples: np.ndarray) -> None:
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    interpreter.score(samples[0], 0)
    before = interpreter.loss_q16
    for _ in range(60):
        interpreter.train_step(samples[0], 0, LEARNING_RATE * 4, 11)
    assert interpreter.loss_q16 < before / 4


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    for seed in range(20):
        graph, samples = random_graph(seed)
        interpreter = Interpreter(lower(graph, full_plan(graph)))
        for label in range(graph.head.bias.size):
            interpreter.score(samples[label], label)
            logits = interpreter.logits * logit_scale(graph)
            expected = np.log(np.exp(logits - logits[label]).sum())
            assert interpreter.loss_q16 / 2**16 == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("loss", ["binary", "mse"])
def test_losses_of_yes_or_no_and_of_targets_have_the_gradients_of_real_arithmetic(
    loss: Literal["binary", "mse"],
) -> None:
    for seed in range(16):
        graph, samples = random_target_graph(seed, loss)
        outputs = graph.head.bias.size
        interpreter = Interpreter(lower(graph, full_plan(graph)))
        label = seed % (1 << outputs) if loss == "binary" else 0
        interpreter.train_step(samples[seed % 3], label, 0, 5)
        got = interpreter.logits * logit_scale(graph)
        if loss == "binary":
            signs = 1 - 2 * (label >> np.arange(outputs) & 1)
            expected = np.logaddexp(0, signs * got).mean()
        else:
            expected = np.mean((got - graph.head.target_scale * interpreter.targets) ** 2)
        assert interpreter.loss_q16 / 2**16 == pytest.approx(expected, rel=3e-3, abs=1e-3)
        assert min(cosines(interpreter, label).values()) >= 0.999


@pytest.mark.parametrize("loss", ["binary", "mse"])
def test_training_for_yes_or_no_and_for_targets_lowers_the_loss(
    loss: Literal["binary", "mse"],
) -> None:
    graph, samples = random_target_graph(5, loss)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    interpreter.score(samples[0], 1)
    before = interpreter.loss_q16
    for _ in range(40):
        interpreter.train_step(samples[0], 1, LEARNING_RATE, 11)
    predicted = interpreter.score(samples[0], 1)
    assert interpreter.loss_q16 < before / 4
    assert loss == "mse" or predicted == 1


@pytest.mark.parametrize("state", ["q8.8", "int8-stochastic"])
def test_training_on_one_sample_lowers_its_loss(state: str) -> None:
    graph, samples = random_graph(3)
    interpreter = Interpreter(lower(graph, full_plan(graph, state)))
    interpreter.score(samples[0], 1)
    before = interpreter.loss_q16
    for _ in range(30):
        interpreter.train_step(samples[0], 1, LEARNING_RATE, 11)
    assert interpreter.loss_q16 < before / 4


def test_stochastic_rounding_keeps_small_steps_on_average() -> None:
    graph, samples = random_graph(5)
    fine = lower(graph, full_plan(graph))
    fine = replace(fine, segments=tuple(replace(one, shift=4) for one in fine.segments))
    exact = Interpreter(fine)
    exact.train_step(samples[0], 0, LEARNING_RATE // 8, 0)
    wanted = exact.delta()
    segment = exact.program.segment_of("last.weight")
    assert segment is not None
    place = np.s_[segment.first_value : segment.first_value + segment.values]
    program = lower(graph, full_plan(graph, "int8-stochastic"))
    total = np.zeros(segment.values)
    runs = 200
    for seed in range(runs):
        drawn = Interpreter(program)
        drawn.train_step(samples[0], 0, LEARNING_RATE // 8, seed)
        total += drawn.delta()[place]
    # Units: whole steps there, sixteenths of a step here; a quarter step of noise remains.
    assert np.abs(total / runs - wanted[place] / 16).max() < 0.25


def test_weights_saturate_at_127_under_a_huge_learning_rate() -> None:
    graph, samples = random_graph(9)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    for _ in range(5):
        interpreter.train_step(samples[0], 0, 2**31, 0)
    for op in graph.convolutions:
        assert np.abs(interpreter.tensors[f"{op.name}.weight"]).max() <= 127
    assert np.abs(interpreter.tensors["head.weight"]).max() <= 127 * 256
