"""Parts of a tensor and channels in another order, against onnxruntime; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from codegen.operators.concat import Concat
from codegen.operators.gather import Gather
from tests.codegen.importer.test_model import (
    Constants,
    assert_equals_onnxruntime,
    model,
    normal,
    with_head,
)
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), outputs, **attributes)


def conv(source: str, output: str, channels: int, to: int) -> tuple[onnx.NodeProto, Constants]:
    weight = normal(to, channels, 1, 1, seed=len(output) + to)
    return node("Conv", f"{source} {output}.w", output), {f"{output}.w": weight}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def shuffled(source: str, output: str, groups: int, channels: int) -> list[onnx.NodeProto]:
    """ShuffleNet's way, for a picture of 7 by 6."""
    return [
        node("Reshape", f"{source} {output}.split", f"{output}.5d"),
        node("Transpose", f"{output}.5d", f"{output}.turned", perm=[0, 2, 1, 3, 4]),
        node("Reshape", f"{output}.turned {output}.joined", output),
    ]


def shuffle_shapes(output: str, groups: int, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{output}.split": ints(-1, groups, channels // groups, 7, 6),
        f"{output}.joined": ints(-1, channels, 7, 6),
    }


def shuffle_unit(groups: int = 2) -> onnx.ModelProto:
    """A ShuffleNetV2 unit of stride 1, with a second one's split behind its shuffle."""
    stem, weights = conv("x", "stem", 3, 12)
    right, more = conv("b", "right", 6, 6)
    again, most = conv("d", "again", 6, 6)
    nodes = [
        stem,
        node("Split", "stem parts", "a b", axis=1),
        right,
        node("Relu", "right", "bent"),
        node("Concat", "a bent", "both", axis=1),
        *shuffled("both", "mixed", groups, 12),
        node("Split", "mixed parts", "c d", axis=1),
        again,
        node("Concat", "c again", "last", axis=1),
        *shuffled("last", "end", groups, 12),
    ]
    constants = {
        **weights, **more, **most, "parts": ints(6, 6),
        **shuffle_shapes("mixed", groups, 12), **shuffle_shapes("end", groups, 12),
    }  # fmt: skip
    return with_head(nodes, constants, "end", 12)


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_channel_shuffles_evaluate_as_onnxruntime_does(groups: int) -> None:
    assert_equals_onnxruntime(shuffle_unit(groups))


def test_a_shuffle_and_the_split_behind_it_are_one_choice_for_each_part() -> None:
    graph = import_proto(shuffle_unit())
    kinds = [type(op) for op in graph.ops if isinstance(op, Gather | Concat)]
    # The last shuffle is one of the head's columns.
    assert kinds == [Gather, Gather, Concat, Gather, Gather, Concat]


def test_a_sum_with_its_own_shuffle_is_not_taken_for_one_in_order() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, *shuffled("stem", "mixed", 2, 6), node("Add", "stem mixed", "sum")]
    proto = with_head(nodes, {**weights, **shuffle_shapes("mixed", 2, 6)}, "sum", 6)
    assert_equals_onnxruntime(proto)


@pytest.mark.parametrize(
    ("axis", "start", "end", "step"),
    [
        (1, 1, 5, 1), (1, 0, 2**63 - 1, 2), (1, -1, -(2**63), -1), (1, -3, 99, 1),
        (2, 1, -1, 1), (2, 0, 7, 3), (3, 5, 0, -2), (-1, 0, -1, 1), (-3, 4, 1, -1),
    ],
)  # fmt: skip
def test_slices_evaluate_as_onnxruntime_does(axis: int, start: int, end: int, step: int) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    cut = node("Slice", "stem start end axis step", "cut")
    bounds = {"start": ints(start), "end": ints(end), "axis": ints(axis), "step": ints(step)}
    left = len(range(6)[slice(start, end, step)]) if axis in (1, -3) else 6
    if (axis, start, end) == (1, -1, -(2**63)):
        left = 6
    assert_equals_onnxruntime(with_head([stem, cut], {**weights, **bounds}, "cut", left))


def test_space_to_depth_by_slices_evaluates_as_onnxruntime_does() -> None:
    nodes, constants = [], {"two": ints(2, 2), "axes": ints(2, 3), "far": ints(9, 9)}
    for row in (0, 1):
        for column in (0, 1):
            name = f"s{row}{column}"
            constants[f"{name}.from"] = ints(row, column)
            nodes.append(node("Slice", f"x {name}.from far axes two", name))
    nodes.append(node("Concat", "s00 s10 s01 s11", "deep", axis=1))
    last, weights = conv("deep", "last", 12, 5)
    proto = with_head([*nodes, last], {**constants, **weights}, "last", 5,
                      shape=("batch", 3, 6, 6))  # fmt: skip
    assert_equals_onnxruntime(proto)


@pytest.mark.parametrize(("indices", "left"), [([4, 0, 0, -1], 4), ([0, 1, 2, 3, 4, 5], 6)])
def test_gathered_channels_evaluate_as_onnxruntime_does(indices: list[int], left: int) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    picked = node("Gather", "stem indices", "picked", axis=1)
    proto = with_head([stem, picked], {**weights, "indices": ints(*indices)}, "picked", left)
    assert_equals_onnxruntime(proto)


def test_what_tf2onnx_leaves_of_keras_groups_is_refused_with_a_remedy_that_works() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    left = node("StatefulPartitionedCall", "stem", "groups")
    with pytest.raises(ModelError, match=r"'groups' .*side by side \(slices .*, Concatenate\)"):
        import_proto(with_head([stem, left], weights, "groups", 6))
    nodes, constants = [stem], {**weights, "along": ints(1)}
    for index in (0, 1):
        part, more = conv(f"part{index}", f"group{index}", 3, 2)
        ends = {f"first{index}": ints(3 * index), f"end{index}": ints(3 * index + 3)}
        names = f"stem first{index} end{index} along"
        nodes += [node("Slice", names, f"part{index}"), part]
        constants = {**constants, **more, **ends}
    nodes.append(node("Concat", "group0 group1", "beside", axis=1))
    assert_equals_onnxruntime(with_head(nodes, constants, "beside", 4))


def test_one_row_of_a_picture_evaluates_as_onnxruntime_does() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("Gather", "stem row", "line", axis=2),
        node("Conv", "line line.w", "along"),
        node("GlobalAveragePool", "along", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat hw", "logits"),
    ]
    constants = {**weights, "row": np.array(-2), "line.w": normal(5, 6, 3), "hw": normal(5, 4)}
    assert_equals_onnxruntime(model(nodes, constants))


@pytest.mark.parametrize(
    ("cut", "constants", "reason"),
    [
        (node("Gather", "stem i", "cut", axis=1), {"i": ints(6)}, "of a dimension of 6"),
        (node("Slice", "stem a b c", "cut"), {"a": ints(4), "b": ints(2), "c": ints(1)},
         "picks 0 of dimension 1"),
        (node("Split", "stem a", "cut other", axis=1), {"a": ints(2, 3)}, "inconsistent"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_refused_by_node(
    cut: onnx.NodeProto, constants: dict[str, np.ndarray], reason: str
) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    proto = with_head([stem, cut], {**weights, **constants}, "cut", 6)
    with pytest.raises(ModelError, match=rf"'cut[^']*' \({cut.op_type}\).*{reason}"):
        import_proto(proto)


def test_a_shuffle_unit_agrees_with_onnxruntime_in_int8(tmp_path: Path) -> None:
    proto = shuffle_unit()
    x = normal(96, 3, 7, 6)
    assert agreement(int8_outputs(import_proto(proto), x), outputs(proto, x)) >= 0.95
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_file(tmp_path / "float.onnx", tmp_path / "qdq.onnx", x)
    coded = onnx.load(tmp_path / "qdq.onnx")
    assert agreement(int8_outputs(import_proto(coded), x), outputs(coded, x)) >= 0.95


@pytest.mark.parametrize("places", [np.arange(6), np.array([3, 0, 1, 5, 2, 4])])
def test_a_table_of_indices_makes_as_many_dimensions(places: np.ndarray) -> None:
    """As PyTorch exports AdaptiveAvgPool2d(1) of a channels-last example: node_as_strided."""
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("ReduceMean", "stem", "mean", axes=[2, 3]),
        node("Reshape", "mean all", "row"),
        node("Gather", "row places", "strided", axis=0),
        node("Reshape", "strided flat", "features"),
        node("Gemm", "features hw", "logits"),
    ]
    constants = {
        "all": ints(-1), "places": places.reshape(1, 6, 1, 1), "flat": ints(1, 6),
        "hw": normal(6, 4), **weights,
    }  # fmt: skip
    proto = model(nodes, constants, shape=(1, 3, 7, 6))
    assert_equals_onnxruntime(proto)
    chosen = [op for op in import_proto(proto).ops if isinstance(op, Gather)]
    assert bool(chosen) == bool(np.diff(places).min() < 0)
