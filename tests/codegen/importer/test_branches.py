"""If, of which the branch is taken that constants and shapes decide for, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from codegen.operators.requantize import FloatClamp
from tests.codegen.importer.test_model import assert_equals_onnxruntime, normal, with_head
from tests.codegen.importer.test_selections import node


def branch(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.GraphProto:
    """What makes ``same`` of what is outside."""
    return helper.make_graph(
        list(nodes), "branch", [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip


def choice(condition: str, then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", [condition], ["y"], "choice", then_branch=then, else_branch=other)


STEM = node("Conv", "x w", "stem")
WEIGHT = {"w": normal(4, 3, 3, 3)}
CLIPPED = branch(node("Relu", "stem", "bent"), node("Mul", "bent by", "same"),
                 by=np.array(0.5, np.float32))  # fmt: skip
AS_IT_IS = branch(node("Identity", "stem", "same"))


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_of_a_constant_is_taken(taken: bool) -> None:
    nodes = [STEM, choice("yes", CLIPPED, AS_IT_IS)]
    proto = with_head(nodes, {**WEIGHT, "yes": np.array(taken)}, "y", 4)
    assert_equals_onnxruntime(proto)
    clamps = [op for op in import_proto(proto).ops if isinstance(op, FloatClamp)]
    assert not clamps  # part of the convolution, as anywhere else


@pytest.mark.parametrize("rows", [5, 7])
def test_the_branch_that_a_shape_decides_for_is_taken(rows: int) -> None:
    """As PyTorch writes ``if x.size(2) > 4`` of a scripted model, one in the other."""
    constants = {**WEIGHT, "two": np.array(2), "rows": np.array(rows)}
    inner = choice("wide", CLIPPED, AS_IT_IS)
    inner.output[0] = "same"
    deciding = [
        node("Shape", "stem", "shape"), node("Gather", "shape two", "high"),
        node("Equal", "high rows", "wide"), node("Not", "wide", "narrow"),
    ]  # fmt: skip
    outer = choice("wide", AS_IT_IS, branch(node("Not", "narrow", "again"), inner))
    assert_equals_onnxruntime(with_head([STEM, *deciding, outer], constants, "y", 4))


def test_a_branch_may_be_a_constant() -> None:
    nodes = [STEM, choice("yes", branch(same=np.array(3, np.float32)), AS_IT_IS),
             node("Mul", "stem y", "scaled")]  # fmt: skip
    assert_equals_onnxruntime(with_head(nodes, {**WEIGHT, "yes": np.array(True)}, "scaled", 4))


def test_what_samples_decide_is_refused_with_a_remedy_that_works() -> None:
    deciding = [
        node("ReduceL1", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "yes"),
    ]
    nodes = [STEM, *deciding, choice("yes", CLIPPED, AS_IT_IS)]
    constants = {**WEIGHT, "zero": np.array(0, np.float32)}
    # Not what decides about it, which would go with it.
    with pytest.raises(ModelError, match=r"'choice' \(If\).*export without control flow"):
        import_proto(with_head(nodes, constants, "y", 4))
    assert_equals_onnxruntime(with_head([STEM], WEIGHT, "stem", 4))


def test_what_a_branch_holds_is_refused_by_its_own_name() -> None:
    shown = branch(node("Tan", "stem", "same"))
    nodes = [STEM, choice("yes", shown, AS_IT_IS)]
    with pytest.raises(ModelError, match=r"'same' \(Tan\): operator not supported"):
        import_proto(with_head(nodes, {**WEIGHT, "yes": np.array(True)}, "y", 4))
    assert_equals_onnxruntime(with_head(nodes, {**WEIGHT, "yes": np.array(False)}, "y", 4))


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_nothing_unless_it_is_left_on(training: bool) -> None:
    constants = {**WEIGHT, "ratio": np.array(0.5, np.float32), "on": np.array(training)}
    proto = with_head([STEM, node("Dropout", "stem ratio on", "y")], constants, "y", 4)
    if training:
        with pytest.raises(ModelError, match=r"'y' \(Dropout\): .*in inference mode"):
            import_proto(proto)
    else:
        assert_equals_onnxruntime(proto)
