"""Sums, differences and products of two tensors, against onnxruntime; what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from codegen.operators.add import FloatAdd
from codegen.operators.expand import Expand
from codegen.operators.gather import Gather
from codegen.operators.lookup import Lookup
from codegen.operators.product import FloatProduct
from codegen.operators.rearrange import Rearrange
from tests.codegen.importer.test_model import assert_equals_onnxruntime, normal, with_head
from tests.codegen.importer.test_selections import conv, ints, node
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file

SHAPES = {
    "whole": [],
    "channels": [node("GlobalAveragePool", "g", "gate")],
    "pixels": [node("Conv", "g one", "gate")],
    "rows": [node("ReduceMean", "g", "rows", axes=[3]), node("Conv", "rows one", "gate")],
    "columns": [node("ReduceMean", "g", "gate", axes=[2])],
}


def gated(operator: str, shape: str, swapped: bool = False) -> onnx.ModelProto:
    """Two branches, the second of which is reduced to ``shape`` before both meet."""
    stem, weights = conv("x", "stem", 3, 6)
    other, more = conv("stem", "g", 6, 6)
    constants = {**weights, **more, "one": normal(1, 6, 1, 1)}
    second = "gate" if SHAPES[shape] else "g"
    inputs = f"{second} stem" if swapped else f"stem {second}"
    nodes = [stem, other, *SHAPES[shape], node(operator, inputs, "met"), node("Relu", "met", "end")]
    return with_head(nodes, constants, "end", 6)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("swapped", [False, True])
def test_two_tensors_meet_as_in_onnxruntime(operator: str, shape: str, swapped: bool) -> None:
    proto = gated(operator, shape, swapped)
    assert_equals_onnxruntime(proto)
    ops = import_proto(proto).ops
    assert any(isinstance(op, FloatProduct if operator == "Mul" else FloatAdd) for op in ops)
    repeats = operator != "Mul" and shape != "whole"
    assert any(isinstance(op, Expand) for op in ops) == repeats


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_rows_meet_columns_as_in_onnxruntime(operator: str) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("ReduceMean", "stem", "rows", axes=[3]),
        node("ReduceMean", "stem", "columns", axes=[2]),
        node(operator, "rows columns", "met"),
    ]
    assert_equals_onnxruntime(with_head(nodes, weights, "met", 6))


@pytest.mark.parametrize("operator", ["Expand", "Tile"])
def test_repeats_evaluate_as_onnxruntime_does(operator: str) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("GlobalAveragePool", "stem", "mean"),
        node(operator, "mean by", "large"),
        node("Concat", "stem large", "both", axis=1),
    ]
    by = ints(1, 6, 7, 6) if operator == "Expand" else ints(1, 1, 7, 6)
    last, more = conv("both", "last", 12, 5)
    assert_equals_onnxruntime(with_head([*nodes, last], {**weights, **more, "by": by}, "last", 5))
    if operator == "Tile":
        nodes = [stem, node("Tile", "stem by", "twice")]
        by = ints(1, 2, 1, 3)
        assert_equals_onnxruntime(with_head(nodes, {**weights, "by": by}, "twice", 12))


REPEATS: dict[str, tuple[str, list[int], list[int], list[int]]] = {
    # operator, of the shape it sees, its shape or counts, and what is made of it
    "rows": ("Tile", [-1, 6, 7, 1, 6], [1, 1, 1, 2, 1], [-1, 6, 14, 6]),
    "columns": ("Tile", [-1, 6, 7, 6, 1], [1, 1, 1, 1, 3], [-1, 6, 7, 18]),
    "both": ("Expand", [-1, 6, 7, 1, 6, 1], [1, 6, 7, 2, 6, 3], [-1, 6, 14, 18]),
    "channels": ("Tile", [-1, 6, 1, 7, 6], [1, 1, 2, 1, 1], [-1, 12, 7, 6]),
}


@pytest.mark.parametrize("name", REPEATS)
def test_copies_beside_each_entry_evaluate_as_onnxruntime_does(name: str) -> None:
    operator, seen, by, made = REPEATS[name]
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node("Reshape", "stem seen", "apart"), node(operator, "apart by", "more"),
             node("Reshape", "more made", "joined")]  # fmt: skip
    last, more = conv("joined", "last", made[1], 5)
    shapes = {"seen": ints(*seen), "by": ints(*by), "made": ints(*made)}
    proto = with_head([*nodes, last], {**weights, **more, **shapes}, "last", 5)
    assert_equals_onnxruntime(proto)
    # One step over all pixels, however many dimensions were repeated.
    copies = [op for op in import_proto(proto).ops if isinstance(op, Gather | Rearrange)]
    assert len(copies) == 1


def test_copies_of_what_has_rows_and_columns_are_refused_with_a_remedy_that_works() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    apart = [stem, node("Reshape", "stem seen", "apart"), node("Tile", "apart by", "more")]
    shapes = {"seen": ints(-1, 1, 6, 7, 6), "by": ints(1, 2, 1, 1, 1)}
    message = r"'more' \(Tile\): .*only copies of the entries of the dimension before it"
    with pytest.raises(ModelError, match=message):
        import_proto(with_head(apart, {**weights, **shapes}, "more", 12))
    beside = {"seen": ints(-1, 6, 1, 7, 6), "by": ints(1, 1, 2, 1, 1), "all": ints(-1, 12, 7, 6)}
    joined = node("Reshape", "more all", "joined")
    assert_equals_onnxruntime(with_head([*apart, joined], {**weights, **beside}, "joined", 12))


def test_a_difference_of_functions_of_one_tensor_is_a_function_of_it() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node("Tanh", "stem", "t"), node("Sub", "stem t", "shrunk"),
             node("Sigmoid", "shrunk", "s"), node("Mul", "stem s", "end")]  # fmt: skip
    proto = with_head(nodes, weights, "end", 6)
    assert_equals_onnxruntime(proto)
    ops = import_proto(proto).ops
    assert any(isinstance(op, Lookup) for op in ops)
    assert not any(isinstance(op, FloatAdd | FloatProduct) for op in ops)


def squeeze_and_excite() -> onnx.ModelProto:
    """A block of MobileNetV3: HardSwish, squeeze-and-excite with HardSigmoid, residual."""
    nodes, constants = [], {}
    for source, output, *channels in (
        ("x", "stem", 3, 8), ("bent", "wide", 8, 16), ("mean", "less", 16, 4),
        ("few", "more", 4, 16), ("gated", "narrow", 16, 8),
    ):  # fmt: skip
        made, weights = conv(source, output, *channels)
        constants.update({key: value * 0.6 for key, value in weights.items()})
        nodes.append(made)
        nodes += {
            "stem": [node("HardSwish", "stem", "bent")],
            "wide": [node("HardSwish", "wide", "act"), node("GlobalAveragePool", "act", "mean")],
            "less": [node("Relu", "less", "few")],
            "more": [
                node("HardSigmoid", "more", "gate", alpha=1 / 6),
                node("Mul", "act gate", "gated"),
            ],
            "narrow": [node("Add", "narrow bent", "end")],
        }[output]  # fmt: skip
    return with_head(nodes, constants, "end", 8)


def test_squeeze_and_excite_agrees_with_onnxruntime_in_int8(tmp_path: Path) -> None:
    proto = squeeze_and_excite()
    assert_equals_onnxruntime(proto)
    x = normal(96, 3, 7, 6)
    assert agreement(int8_outputs(import_proto(proto), x), outputs(proto, x)) >= 0.95
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_file(tmp_path / "float.onnx", tmp_path / "qdq.onnx", x)
    coded = onnx.load(tmp_path / "qdq.onnx")
    calibrated = import_proto(coded)
    assert agreement(int8_outputs(calibrated, x), outputs(coded, x)) >= 0.95


def test_tensors_that_do_not_fit_are_refused_and_the_remedy_works() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    other, more = conv("x", "g", 3, 4)
    constants = {**weights, **more}
    with pytest.raises(
        ModelError, match=r"'met' \(Mul\).*\[1, 6, 7, 6\] and \[1, 4, 7, 6\].*1x1 Conv"
    ):
        import_proto(with_head([stem, other, node("Mul", "stem g", "met")], constants, "met", 6))
    last, most = conv("g", "alike", 4, 6)
    nodes = [stem, other, last, node("Mul", "stem alike", "met")]
    assert_equals_onnxruntime(with_head(nodes, {**constants, **most}, "met", 6))
