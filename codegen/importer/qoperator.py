"""Models of integer operators (onnxruntime's QOperator format) in QDQ form.

Each operator that reads codes with their scales and makes codes again, as QLinearConv does, means:
dequantize, compute in real numbers, quantize. So the nodes are written, before any handler sees
them. What each input is stands in the specifications of ONNX and of onnxruntime's contrib operators
(ContribOperators.md). onnxruntime's optimizer lets them work on pictures whose channels lie last:
these are turned before and behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import helper

from codegen.importer.nodes import Node, read_node
from codegen.importer.state import ImportState


@dataclasses.dataclass(frozen=True)
class _Form:
    """What an operator computes, and where its inputs stand, each with scale and zero point behind.

    ``result`` is the place of the result's scale, ``bias`` that of an int32 bias. Scales by channel
    go along ``weight_axis`` of the second input. ``left_out`` are attributes that ``operator``
    doesn't have; the handler of GlobalAveragePool knows channels_last, for which it needs no rank.
    """

    operator: str
    sources: Callable[[Node], tuple[int, ...]]
    result: int
    bias: int | None = None
    weight_axis: Callable[[Node], int] = lambda node: 0
    left_out: tuple[str, ...] = ("channels_last",)


def _one(node: Node) -> tuple[int, ...]:
    return (0,)


def _two(node: Node) -> tuple[int, ...]:
    return (0, 3)


def _from_second(node: Node) -> tuple[int, ...]:
    return tuple(range(2, len(node.inputs), 3))


def _gemm_axis(node: Node) -> int:
    return 0 if node.attributes.get("transB", 0) else 1


_FORMS: Mapping[str, _Form] = {
    "QLinearConv": _Form("Conv", _two, 6, bias=8),
    "QLinearMatMul": _Form("MatMul", _two, 6, weight_axis=lambda node: 1),
    "QGemm": _Form("Gemm", _two, 7, bias=6, weight_axis=_gemm_axis),
    "QLinearAdd": _Form("Add", _two, 6),
    "QLinearMul": _Form("Mul", _two, 6),
    "QLinearConcat": _Form("Concat", _from_second, 0),
    "QLinearAveragePool": _Form("AveragePool", _one, 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", _one, 3, left_out=()),
    "QLinearReduceMean": _Form("ReduceMean", _one, 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", _one, 3),
    "QLinearSigmoid": _Form("Sigmoid", _one, 3),
    "QLinearSoftmax": _Form("Softmax", _one, 3, left_out=("opset",)),
}
_LAST_MAX_POOL = "NhwcMaxPool"  # of codes that keep their scale
QOPERATORS = tuple(sorted([*_FORMS, _LAST_MAX_POOL]))


def to_qdq(state: ImportState) -> None:
    """Writes every integer operator among the nodes of ``state`` as the nodes that it stands for.

    Raises ModelError for one whose result can't be told so.
    """
    nodes: list[Node] = []
    for node in state.nodes:
        name = node.operator.removeprefix("com.microsoft.")
        if name == _LAST_MAX_POOL:
            nodes += _Expansion(state, node, _Form("MaxPool", _one, 0)).of_codes()
        elif name in _FORMS:
            nodes += _Expansion(state, node, _FORMS[name]).nodes()
        else:
            nodes.append(node)
    state.nodes = nodes


class _Expansion:
    """One integer operator; names of what is made in between begin with that of its output."""

    def __init__(self, state: ImportState, node: Node, form: _Form) -> None:
        self._state, self._node, self._form = state, node, form
        self._made: list[Node] = []

    def nodes(self) -> list[Node]:
        """Dequantizations, the operator in real numbers, and the quantization of its result."""
        node, form = self._node, self._form
        turned = bool(node.attributes.get("channels_last", 0)) and "channels_last" in form.left_out
        places = form.sources(node)
        real = [self._real(place, index) for index, place in enumerate(places)]
        if form.bias is not None and node.input(form.bias):
            real.append(self._bias(places, form.bias))
        if turned:
            real[0] = self._channels_first(real[0])
        attributes = {
            key: value for key, value in node.attributes.items() if key not in form.left_out
        }
        scale, zero = node.input(form.result), node.input(form.result + 1)
        if not scale:  # QGemm whose result is real
            self._append(form.operator, real, node.outputs[0], **attributes)
            return self._made
        result = self._name("result")
        self._append(form.operator, real, result, **attributes)
        if turned:
            result = self._channels_last(result, self._name("last"))
        self._append("QuantizeLinear", [result, scale, zero], node.outputs[0])
        return self._made

    def of_codes(self) -> list[Node]:
        """The operator on codes as they are, of pictures whose channels lie last."""
        source = self._channels_first(self._node.input(0))
        result = self._append(
            self._form.operator, [source], self._name("result"), **self._node.attributes
        )
        self._channels_last(result, self._node.outputs[0])
        return self._made

    def _channels_first(self, name: str) -> str:
        rank = self._rank()
        order = [0, rank - 1, *range(1, rank - 1)]
        return self._append("Transpose", [name], self._name("first"), perm=order)

    def _channels_last(self, name: str, output: str) -> str:
        return self._append("Transpose", [name], output, perm=[0, *range(2, self._rank()), 1])

    def _rank(self) -> int:
        """Dimensions of the picture, which weight or window tell."""
        window = self._node.attributes.get("kernel_shape")
        weight = self._state.constants.get(self._node.input(3))
        return 2 + len(window) if window else 4 if weight is None else weight.ndim

    def _real(self, place: int, index: int) -> str:
        axis = self._form.weight_axis(self._node) if index == 1 else 1
        codes = [self._node.input(place + offset) for offset in range(3)]
        return self._append("DequantizeLinear", codes, self._name(f"input{place}"), axis=axis)

    def _bias(self, places: tuple[int, ...], place: int) -> str:
        """The real bias: its steps are those of the products."""
        scales = [self._node.input(source + 1) for source in places]
        if self._node.attributes.get("alpha", 1.0) != 1.0:
            alpha = self._name("alpha")
            self._state.constants[alpha] = np.array(self._node.attributes["alpha"], np.float32)
            scales.append(alpha)
        scale = scales[0]
        for index, factor in enumerate(scales[1:]):
            scale = self._append("Mul", [scale, factor], self._name(f"scale{index}"))
        codes = [self._node.input(place), scale]
        return self._append("DequantizeLinear", codes, self._name("bias"), axis=0)

    def _name(self, part: str) -> str:
        return f"{self._node.outputs[0]}@{part}"

    def _append(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        proto = helper.make_node(operator, inputs, [output], **attributes)
        self._made.append(read_node(proto, self._node.name, operator))
        return output
