"""Constants of the arithmetic: no sum they allow leaves 32 bits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codegen.arithmetic.integers import requantized
from codegen.arithmetic.layers import INT32_MAX, convolution_arithmetic, requantization
from codegen.errors import ModelError
from codegen.graph.ir import DepthwiseConv, Graph
from tests.codegen.random_graphs import random_graph


@given(
    factors=st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=6),
    sums=st.lists(st.integers(-INT32_MAX, INT32_MAX), min_size=1, max_size=20),
)
@example(factors=[2.0, 2.0**-24], sums=[2147268971, 40, -40])
def test_every_channel_is_requantized_as_if_it_were_alone(
    factors: list[float], sums: list[int]
) -> None:
    words, left = requantization(np.array(factors))
    for factor, word, bits in zip(factors, words, left, strict=True):
        assert (bits > 0) == (factor >= 0.25)
        assert 1 <= word & 31 <= 22
        codes = requantized(np.array(sums), bits, word)
        exact = np.clip(np.array(sums) * factor, -200, 200)
        # Half a step of rounding, and a hair for the multiplier.
        assert np.abs(np.clip(codes, -200, 200) - exact).max() <= 0.5 + 1e-3


def test_scales_beyond_any_use_are_refused_with_the_layers_name() -> None:
    graph, op = graph_with_depthwise()
    scale = np.where(np.arange(len(op.weight_scale)) == 1, 1e60, op.weight_scale)
    broken = dataclasses.replace(op, weight_scale=scale)
    with pytest.raises(ModelError, match=f"layer {op.name}: a gradient's factor"):
        convolution_arithmetic(graph, broken)


def graph_with_depthwise() -> tuple[Graph, DepthwiseConv]:
    graph, _ = random_graph(1)
    return graph, next(op for op in graph.convolutions if isinstance(op, DepthwiseConv))


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        ("output", (400, 200, 4), "80000 output pixels"),
        ("input", (1, 70000, 4), "of 70000 is more than 65535"),
    ],
)
def test_a_layer_of_too_many_pixels_is_refused_by_name(
    which: str, shape: tuple[int, int, int], message: str
) -> None:
    graph, op = graph_with_depthwise()
    name = getattr(op, which)
    huge = dataclasses.replace(graph.tensors[name], shape=shape)
    with pytest.raises(ModelError, match=f"{op.name}: .*{message}"):
        convolution_arithmetic(
            dataclasses.replace(graph, tensors={**graph.tensors, name: huge}), op
        )


@pytest.mark.parametrize(
    ("kernel", "refused"),
    [((256, 1), "above 255"), ((23, 23), "529 taps"), ((12, 43), None)],
)
def test_a_depthwise_kernel_whose_errors_could_overflow_is_refused_by_name(
    kernel: tuple[int, int], refused: str | None
) -> None:
    graph, op = graph_with_depthwise()
    channels = op.weight.shape[-1]
    large = dataclasses.replace(op, weight=np.full((*kernel, channels), 127, np.int8))
    if refused is None:
        convolution_arithmetic(graph, large)
        return
    with pytest.raises(ModelError, match=f"{op.name}: .*{refused}"):
        convolution_arithmetic(graph, large)
