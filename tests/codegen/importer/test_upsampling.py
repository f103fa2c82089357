"""ConvTranspose and Resize against onnxruntime, and what is refused of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen.importer.test_dilation import (
    ending,
    same_as_onnxruntime,
    trained_gradients_are_exact,
)
from tests.codegen.importer.test_model import normal, with_head
from tests.conftest import examples


@st.composite
def transposed(draw: st.DrawFn) -> onnx.ModelProto:
    """A ConvTranspose of any kind."""
    rank = draw(st.sampled_from([1, 2, 2]))
    pairs = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = draw(pairs), draw(pairs), draw(pairs)
    size = draw(st.lists(st.integers(1, 7), min_size=rank, max_size=rank))
    pads = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    more = [draw(st.integers(0, step - 1)) for step in strides]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    wholes = [(n - 1) * s + e for n, s, e in zip(size, strides, extents, strict=True)]
    cut = [a + b for a, b in zip(pads, pads[rank:], strict=False)]
    # What is left must hold a pixel of the whole.
    assume(all(whole - both >= 1 for whole, both in zip(wholes, cut, strict=True)))
    made = [whole + m - both for whole, m, both in zip(wholes, more, cut, strict=True)]
    channels = draw(st.integers(1, 3))
    depthwise = channels > 1 and draw(st.booleans())
    outputs = 1 if depthwise else draw(st.integers(1, 3))
    groups = channels if depthwise else 1
    node = helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"], "up", strides=strides, dilations=dilations,
        pads=pads, output_padding=more, group=groups,
    )  # fmt: skip
    constants = {
        "w": normal(channels, outputs, *kernel, seed=1),
        "b": normal(outputs * groups, seed=2),
    }
    result = outputs * groups * int(np.prod(made))
    return ending([node], constants, (channels, *size), "y", result)


@examples(60)
@given(transposed())
def test_a_transposed_convolution_computes_what_onnxruntime_does(proto: onnx.ModelProto) -> None:
    same_as_onnxruntime(proto)


@pytest.mark.parametrize("around", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
                                    {"auto_pad": "VALID"}, {"output_shape": [8, 10]}])  # fmt: skip
def test_a_transposed_convolution_may_say_its_size_in_other_ways(
    around: dict[str, object],
) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 2], **around)
    size = 2 * (9 * 11 if around == {"auto_pad": "VALID"} else 8 * 10)
    same_as_onnxruntime(ending([node], {"w": normal(3, 2, 3, 3)}, (3, 4, 5), "y", size))


@pytest.mark.parametrize(
    "kind", ["asymmetric", "half_pixel", "align_corners", "tf_half_pixel_for_nn"]
)
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("by_size", [False, True])
def test_pictures_are_resized_to_the_nearest_pixel(kind: str, rounding: str, by_size: bool) -> None:
    node = helper.make_node(
        "Resize", ["x", "", "", "n"] if by_size else ["x", "", "s"], ["y"], "up", mode="nearest",
        coordinate_transformation_mode=kind, nearest_mode=rounding,
    )  # fmt: skip
    constants = {"n": np.array([1, 2, 11, 7])} if by_size else {"s": np.float32([1, 1, 2, 2.5])}
    size = 2 * (11 * 7 if by_size else 10 * 7)
    same_as_onnxruntime(ending([node], constants, (2, 5, 3), "y", size))


@pytest.mark.parametrize("kind", ["asymmetric", "half_pixel", "pytorch_half_pixel"])
@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (4, 2), (5, 1)])
def test_pictures_are_resized_linearly_by_whole_numbers(
    kind: str, factors: tuple[int, int]
) -> None:
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], "up", mode="linear", coordinate_transformation_mode=kind
    )
    constants = {"s": np.float32([1, 1, *factors])}
    same_as_onnxruntime(ending([node], constants, (2, 5, 3), "y", 2 * 15 * factors[0] * factors[1]))


@pytest.mark.parametrize("kind", ["asymmetric", "half_pixel"])
@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (5, 4)])
def test_a_linear_resize_of_codes_is_off_by_one_rounding_at_most(
    kind: str, factors: tuple[int, int]
) -> None:
    nodes = [
        *coded("x", "from"),
        helper.make_node("Resize", ["x_from", "", "f"], ["r"], "up", mode="linear",
                         coordinate_transformation_mode=kind),
        *coded("r", "to"),
        helper.make_node("Conv", ["r_to", "w"], ["y"], "back"),
    ]  # fmt: skip
    constants = {
        "from_scale": np.float32(0.02), "from_zero": np.uint8(100),
        "to_scale": np.float32(0.017), "to_zero": np.uint8(110),
        "f": np.float32([1, 1, *factors]), "w": normal(2, 2, 1, 1),
    }  # fmt: skip
    size = 2 * 15 * factors[0] * factors[1]
    float_graph = import_proto(ending(nodes, constants, (2, 5, 3), "y", size), loss="none")
    samples = normal(32, 2, 5, 3, seed=5)
    graph = quantize(float_graph, samples)
    codes = quantize_input(graph, samples.transpose(0, 2, 3, 1))
    values = simulate(graph, codes)
    exact = evaluate(float_graph, values[graph.input])["up"]
    step = graph.tensors["up"].scale
    low, high = (step * (end - graph.tensors["up"].zero_point) for end in (-128, 127))
    assert np.abs(values["up"] - np.clip(exact, low, high)).max() <= 0.5001 * step


def coded(source: str, by: str) -> list[onnx.NodeProto]:
    """``source`` to codes and back, in steps ``by``_scale."""
    steps = [f"{by}_scale", f"{by}_zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *steps], [f"{source}_codes"]),
        helper.make_node("DequantizeLinear", [f"{source}_codes", *steps], [f"{source}_{by}"]),
    ]


def up_and_down() -> onnx.ModelProto:
    """A network that makes its picture smaller and larger again, by both operators."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "down", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "bend"),
        helper.make_node("ConvTranspose", ["b", "w2", "b2"], ["c"], "up", strides=[2, 2],
                         pads=[1, 1, 1, 1], output_padding=[1, 1]),
        helper.make_node("Relu", ["c"], ["d"], "bend2"),
        helper.make_node("Conv", ["d", "w3"], ["e"], "again", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["e", "", "s"], ["y"], "larger", mode="nearest",
                         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]  # fmt: skip
    constants = {
        "w1": normal(5, 2, 3, 3) / 2, "w2": normal(5, 4, 3, 3) / 3, "b2": normal(4) / 2,
        "w3": normal(6, 4, 3, 3) / 3, "s": np.float32([1, 1, 2, 2]),
    }  # fmt: skip
    return ending(nodes, constants, (2, 8, 8), "y", 6 * 8 * 8)


def test_a_network_with_upsampling_trains_on_devices_as_it_does_in_real_numbers() -> None:
    proto = up_and_down()
    float_graph = same_as_onnxruntime(proto)
    samples = normal(40, 2, 8, 8, seed=6)
    graph = quantize(float_graph, samples)
    codes = quantize_input(graph, samples.transpose(0, 2, 3, 1))
    scores = simulate(graph, codes)[graph.head.name]
    exact = evaluate(float_graph, samples)[float_graph.head.output]
    assert (scores.argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.95
    trained_gradients_are_exact(graph, codes)


def test_the_taps_of_a_quantized_transposed_convolution_keep_their_integers() -> None:
    scale, codes = np.float32(0.02), np.arange(-36, 36).reshape(2, 4, 3, 3).astype(np.int8)
    coded = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["w"]),
        helper.make_node("ConvTranspose", ["xd", "w"], ["y"], "up", strides=[2, 2]),
    ]
    constants = {"s": scale, "z": np.int8(0), "wq": codes}
    graph = import_proto(ending(coded, constants, (2, 3, 3), "y", 4 * 7 * 7), loss="cross-entropy")
    layer = next(op for op in graph.ops if isinstance(op, FloatConv))
    assert layer.stored is not None
    stored = layer.stored.weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(stored, codes)


UP = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", pads=[1, 1, 1, 1])


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (with_head([UP], {"w": normal(5, 4, 3, 3)}, "y", 4), r"'up'.*doesn't fit an input of 3"),
        (with_head([helper.make_node("Resize", ["x", "", "s"], ["y"], "up", mode="cubic")],
                   {"s": np.float32([1, 1, 2, 2])}, "y", 3), r"'up'.*mode = cubic.*nearest"),
        (with_head([helper.make_node("Resize", ["x", "", "s"], ["y"], "up", mode="linear")],
                   {"s": np.float32([1, 1, 1.5, 2])}, "y", 3), r"'up'.*10 rows or columns of 7"),
        (with_head([helper.make_node("Resize", ["x", "", "s"], ["y"], "up")],
                   {"s": np.float32([1, 2, 2, 2])}, "y", 6), r"'up'.*only height and width"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_with_node_and_remedy(
    proto: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        import_proto(proto)
