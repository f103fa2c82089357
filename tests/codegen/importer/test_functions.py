"""Activations in the spellings of exporters, against onnxruntime: each becomes one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, FloatHead
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.lookup import Lookup, lookup_arithmetic
from codegen.quantization.quantize import quantize
from tests.codegen.onnxruntime_oracle import codes_of, quantize_file, run

Line = tuple[Any, ...]
"""Operator, inputs, output, attributes."""

NUMBERS = {
    "half": 0.5, "one": 1.0, "three": 3.0, "four": 4.0, "six": 6.0, "zero": 0.0, "sixth": 1 / 6,
    "root": 2**0.5, "line": 0.7978845608, "cubic": 0.044715, "slope": 0.25,
}  # fmt: skip


def one(operator: str, **attributes: object) -> list[Line]:
    return [(operator, ["y"], "a", attributes)]


SPELLINGS: dict[str, list[Line]] = {
    "hard swish": one("HardSwish"),
    "hard sigmoid": one("HardSigmoid", alpha=0.3, beta=0.4),
    "sigmoid": one("Sigmoid"),
    "tanh": one("Tanh"),
    "leaky": one("LeakyRelu", alpha=0.1),
    "elu": one("Elu", alpha=1.2),
    "selu": one("Selu"),
    "celu": one("Celu", alpha=0.7),
    "magnitude": one("Abs"),
    "softplus": one("Softplus"),
    "mish": one("Mish"),
    "gelu": one("Gelu"),
    "gelu by tanh": one("Gelu", approximate="tanh"),
    "one slope": [("PRelu", ["y", "slope"], "a", {})],
    "silu of pytorch": [("Sigmoid", ["y"], "s", {}), ("Mul", ["y", "s"], "a", {})],
    "gelu of pytorch": [
        ("Div", ["y", "root"], "d", {}), ("Erf", ["d"], "e", {}), ("Add", ["e", "one"], "f", {}),
        ("Mul", ["y", "f"], "g", {}), ("Mul", ["g", "half"], "a", {}),
    ],
    "tanh gelu of pytorch": [
        ("Mul", ["half", "y"], "h", {}), ("Pow", ["y", "three"], "p", {}),
        ("Mul", ["p", "cubic"], "q", {}), ("Add", ["y", "q"], "r", {}),
        ("Mul", ["r", "line"], "s", {}), ("Tanh", ["s"], "t", {}), ("Add", ["t", "one"], "u", {}),
        ("Mul", ["h", "u"], "a", {}),
    ],
    "hard swish of tf2onnx": [
        ("Add", ["y", "three"], "b", {}), ("Clip", ["b", "zero", "six"], "c", {}),
        ("Mul", ["y", "c"], "d", {}), ("Mul", ["d", "sixth"], "a", {}),
    ],
    "hard swish of old pytorch": [
        ("Add", ["y", "three"], "b", {}), ("Clip", ["b", "zero", "six"], "c", {}),
        ("Div", ["c", "six"], "d", {}), ("Mul", ["y", "d"], "a", {}),
    ],
    "mish of old pytorch": [
        ("Softplus", ["y"], "b", {}), ("Tanh", ["b"], "c", {}), ("Mul", ["y", "c"], "a", {}),
    ],
    "softplus by a choice": [  # as PyTorch's, of whose opset it is none
        ("Greater", ["y", "six"], "b", {}), ("Exp", ["y"], "c", {}), ("Add", ["c", "one"], "d", {}),
        ("Log", ["d"], "e", {}), ("Where", ["b", "y", "e"], "a", {}),
    ],
    "elu by a choice": [
        ("Exp", ["y"], "b", {}), ("Sub", ["b", "one"], "c", {}), ("Mul", ["c", "half"], "d", {}),
        ("LessOrEqual", ["y", "zero"], "e", {}), ("Where", ["e", "d", "y"], "a", {}),
    ],
    "selu of tf2onnx": [  # a choice by casts and products
        ("Greater", ["y", "zero"], "b", {}), ("Not", ["b"], "c", {}),
        ("Cast", ["b"], "p", {"to": TensorProto.FLOAT}),
        ("Cast", ["c"], "q", {"to": TensorProto.FLOAT}), ("Elu", ["y"], "d", {}),
        ("Mul", ["d", "root"], "e", {}), ("Mul", ["y", "p"], "f", {}), ("Mul", ["e", "q"], "g", {}),
        ("Add", ["f", "g"], "h", {}), ("Mul", ["h", "line"], "a", {}),
    ],
    "leaky by a choice": [
        ("Mul", ["y", "slope"], "b", {}), ("Less", ["zero", "y"], "c", {}),
        ("Where", ["c", "y", "b"], "a", {}),
    ],
    "hard shrink": [
        ("Abs", ["y"], "b", {}), ("GreaterOrEqual", ["half", "b"], "c", {}),
        ("Where", ["c", "zero", "y"], "a", {}),
    ],
    "between": [
        ("Less", ["y", "one"], "b", {}), ("Greater", ["y", "zero"], "c", {}),
        ("And", ["b", "c"], "d", {}), ("Where", ["d", "y", "half"], "a", {}),
    ],
    "sigmoid by its exponential": [
        ("Neg", ["y"], "b", {}), ("Exp", ["b"], "c", {}), ("Add", ["c", "one"], "d", {}),
        ("Div", ["one", "d"], "a", {}),
    ],
    "gaussian": [("Mul", ["y", "y"], "b", {}), ("Neg", ["b"], "c", {}), ("Exp", ["c"], "a", {})],
    "softsign": one("Softsign"),
    "softsign of pytorch": [
        ("Abs", ["y"], "b", {}), ("Add", ["b", "one"], "c", {}), ("Div", ["y", "c"], "a", {}),
    ],
    "silu by its exponential": [
        ("Neg", ["y"], "b", {}), ("Exp", ["b"], "c", {}), ("Add", ["c", "one"], "d", {}),
        ("Div", ["y", "d"], "a", {}),
    ],
    "sine": one("Sin"),
    "cosine": one("Cos"),
    "arc tangent": one("Atan"),
    "snake": [  # x + sin²(x)
        ("Sin", ["y"], "b", {}), ("Mul", ["b", "b"], "c", {}), ("Add", ["y", "c"], "a", {}),
    ],
    "sign": one("Sign"),
    "shrink": one("Shrink", lambd=0.7, bias=0.7),
    "shrink without bias": one("Shrink", lambd=0.7),
    "relu above a threshold": one("ThresholdedRelu", alpha=0.6),
    "a fourth power": [("Mul", ["y", "half"], "b", {}), ("Pow", ["b", "four"], "a", {})],
    "a range without 0": [("Clip", ["y", "half", "three"], "a", {})],
    "no less than a half": [("Max", ["y", "half"], "a", {})],
    "shrunk": [("Tanh", ["y"], "b", {}), ("Sub", ["y", "b"], "a", {})],
    "a square": [("Mul", ["y", "y"], "a", {})],
    "relu of a sigmoid": [("Sigmoid", ["y"], "s", {}), ("Relu", ["s"], "a", {})],
}  # fmt: skip


def model(lines: list[Line], opset: int = 20) -> onnx.ModelProto:
    """A convolution, ``lines`` from its output y to a, and a classifier."""
    draw = np.random.default_rng(3)
    weights: dict[str, NDArray[Any]] = {
        "w": draw.normal(size=(4, 3, 1, 1)), "v": draw.normal(size=(4, 3, 1, 1)),
        "m": draw.normal(size=(4, 5)), **{name: np.array(value) for name, value in NUMBERS.items()},
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
        helper.make_node("Conv", ["x", "v"], ["other"], "branch"),
        *(
            helper.make_node(operator, inputs, [output], f"{operator}_{output}", **attributes)
            for operator, inputs, output, attributes in lines
        ),
        helper.make_node("GlobalAveragePool", ["a"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "m"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "bends",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 9
    return proto


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_every_spelling_of_an_activation_is_one_function(name: str) -> None:
    proto = model(SPELLINGS[name])
    graph = import_proto(proto)
    assert [type(op) for op in graph.ops] == [FloatConv, Lookup, GlobalAveragePool, FloatHead]
    x = (3 * np.random.default_rng(1).normal(size=(4, 3, 6, 5))).astype(np.float32)
    logits = evaluate(graph, x)[graph.head.output]
    np.testing.assert_allclose(logits, run(proto, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["hard swish", "silu of pytorch", "gelu of pytorch", "hard swish of tf2onnx"]
)
def test_quantized_models_keep_the_codes_of_every_step(name: str, tmp_path: Path) -> None:
    x = (2 * np.random.default_rng(1).normal(size=(16, 3, 6, 5))).astype(np.float32)
    onnx.save(model(SPELLINGS[name]), tmp_path / "float.onnx")
    quantize_file(tmp_path / "float.onnx", tmp_path / "int8.onnx", x)
    proto = onnx.load(tmp_path / "int8.onnx")
    graph = quantize(import_proto(proto), None)
    (lookup,) = (op for op in graph.ops if isinstance(op, Lookup))
    known = codes_of(proto, x)
    made = lookup_arithmetic(graph, lookup).codes[known["y"] + 128]
    # Of codes that stand between two, float32 may take the other one.
    assert np.abs(made - known["a"]).max() <= 1
    assert (made != known["a"]).mean() < 0.01


def test_what_else_reads_a_part_of_an_activation_still_can() -> None:
    lines: list[Line] = [
        ("Sigmoid", ["y"], "s", {}), ("Mul", ["y", "s"], "b", {}),
        ("Mul", ["other", "s"], "c", {}), ("Add", ["b", "c"], "a", {}),
    ]  # fmt: skip
    proto = model(lines)
    graph = import_proto(proto)
    assert sum(isinstance(op, Lookup) for op in graph.ops) == 2
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5)).astype(np.float32)
    logits = evaluate(graph, x)[graph.head.output]
    np.testing.assert_allclose(logits, run(proto, x)[0], rtol=1e-4, atol=1e-4)


def test_what_tf2onnx_leaves_of_keras_gelu_is_refused_with_a_remedy_that_works() -> None:
    with pytest.raises(ModelError, match=r"'Erfc_a' \(Erfc\): .*use gelu with approximate=True"):
        import_proto(model(one("Erfc")))
    import_proto(model(SPELLINGS["tanh gelu of pytorch"]))
    with pytest.raises(ModelError, match=r"\(TensorListStack\): .* the exporter has left it"):
        import_proto(model(one("TensorListStack")))


@pytest.mark.parametrize("operator", ["Max", "Min"])
def test_the_larger_or_smaller_of_tensors_is_made_of_sums(operator: str) -> None:
    lines = [("Tanh", ["y"], "b", {}), (operator, ["b", "other", "half"], "a", {})]
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5)).astype(np.float32)
    graph = import_proto(model(lines))
    logits = evaluate(graph, x)[graph.head.output]
    np.testing.assert_allclose(logits, run(model(lines), x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "lines",
    [
        [("Where", ["columns", "y", "three"], "a", {})],
        [("Where", ["columns", "row", "y"], "a", {})],
        [("Where", ["columns", "row", "three"], "b", {}), ("Mul", ["b", "y"], "a", {})],
        [
            ("Greater", ["y", "half"], "b", {}), ("Less", ["y", "zero"], "c", {}),
            ("Or", ["b", "c"], "d", {}), ("And", ["d", "columns"], "e", {}),
            ("Cast", ["e"], "a", {"to": TensorProto.FLOAT}),
        ],
        [
            ("Greater", ["y", "half"], "b", {}), ("Or", ["b", "never"], "c", {}),
            ("Cast", ["c"], "a", {"to": TensorProto.FLOAT}),
        ],
        [
            ("Greater", ["y", "half"], "b", {}), ("Or", ["always", "b"], "c", {}),
            ("Cast", ["c"], "d", {"to": TensorProto.FLOAT}), ("Mul", ["d", "y"], "a", {}),
        ],
    ],
)  # fmt: skip
def test_what_constants_choose_evaluates_as_in_onnxruntime(lines: list[Line]) -> None:
    proto = model(lines)
    constants = {
        "columns": np.arange(5) % 2 == 0, "row": np.arange(5, dtype="f4"),
        "never": np.array(False), "always": np.array(True),
    }  # fmt: skip
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5)).astype(np.float32)
    graph = import_proto(proto)
    logits = evaluate(graph, x)[graph.head.output]
    np.testing.assert_allclose(logits, run(proto, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("Pow", ["y", "half"], "a", {}), r"'Pow_a' \(Pow\): raises to no whole power from 1 on"),
        (("Celu", ["y"], "a", {"alpha": 0.0}), r"'Celu_a' \(Celu\): attribute alpha = 0"),
        (("Celu", ["y"], "a", {"alpha": -1.0}), r"'Celu_a' \(Celu\): attribute alpha = -1"),
        (("PRelu", ["y", "w"], "a", {}), r"'PRelu_a' \(PRelu\): combines .*size 1"),
    ],
)
def test_functions_that_are_not_taken_are_refused_by_their_node(line: Line, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_proto(model([line]))
