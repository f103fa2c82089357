"""Values of the bundle's tensors in a QDQ file that was trained elsewhere.

The importer makes an int8 graph of the file. It is the bundle's where both have the same operations
and codes; files have their scales in float32, so that a relative difference of 1e-6 is none.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import NoReturn

import numpy as np
import onnx

from codegen.arithmetic.integers import Ints
from codegen.errors import VersionError
from codegen.export.integer_model import device_layout, stored_layout
from codegen.firmware.model_digest import operations
from codegen.graph.floats import FloatConv, FloatGraph, loss_of
from codegen.graph.ir import Conv, DepthwiseConv, Ending, Graph, Head, Tensor
from codegen.importer.model import import_proto
from codegen.quantization.calibration import RangeRule, uncoded
from codegen.quantization.quantize import assemble, codings_of, head_values

_TOLERANCE = 1e-6
_WHOLE = 1e-3  # of a step, from whole numbers: float32 scales leave 127 steps within 1e-5


def values_of_quantized(model: onnx.ModelProto, graph: Graph, of: str) -> dict[str, Ints]:
    """Values of all tensors of ``graph`` in a quantized model of the same network.

    Layers are matched by their order, whatever their names. Raises VersionError that names where
    the network or its scales are others, ModelError for what the importer refuses. ``of`` is the
    file's name.
    """
    read = import_proto(model, graph.name, loss_of(graph.ending))
    missing = uncoded(read)
    if missing:
        raise VersionError(
            f"{of}: tensor '{missing[0]}' has no QuantizeLinear ({len(missing)} of its "
            "tensors have none), and a version of the weights is in integers; quantize every "
            "activation with the bundle's scales (int8, QDQ), or write trained integers into an "
            "export of the bundle"
        )
    theirs = assemble(read, codings_of(read, {}, RangeRule()))
    _check_network(graph, theirs, of)
    _check_codes(graph, theirs, of)
    values: dict[str, Ints] = {}
    layers = [op for op in read.ops if isinstance(op, FloatConv)]
    for ours, other, layer in zip(graph.convolutions, theirs.convolutions, layers, strict=True):
        weight, bias = _integers(graph, ours, other, layer, of)
        values[f"{ours.name}.weight"], values[f"{ours.name}.bias"] = weight, bias
    if isinstance(graph.ending, Head):
        weight, bias = _head_integers(graph, read)
        values[f"{graph.head.name}.weight"], values[f"{graph.head.name}.bias"] = weight, bias
    return values


def _check_network(graph: Graph, theirs: Graph, of: str) -> None:
    pairs = zip_longest(operations(graph), operations(theirs), graph.ops, theirs.ops)
    for ours, other, our_op, their_op in pairs:
        if ours != other:
            had, has = (
                f"{type(op).__name__} '{op.name}'" if op is not None else "nothing"
                for op in (their_op, our_op)
            )
            _refuse(of, f"has {had} (or its options) where the bundle has {has}")
        if isinstance(our_op, (Conv, DepthwiseConv, Head)):
            assert isinstance(their_op, type(our_op))
            if our_op.weight.shape != their_op.weight.shape:
                _refuse(
                    of,
                    f"has a weight of {list(their_op.weight.shape)} in layer '{their_op.name}', "
                    f"the bundle's '{our_op.name}' has {list(our_op.weight.shape)}",
                )


def _check_codes(graph: Graph, theirs: Graph, of: str) -> None:
    for ours, other in zip(_activations(graph), _activations(theirs), strict=True):
        same_scale = bool(np.isclose(other.scale, ours.scale, rtol=_TOLERANCE, atol=0.0))
        if other.shape != ours.shape or not same_scale or other.zero_point != ours.zero_point:
            had, has = (
                f"shape {list(t.shape)}, scale {t.scale:.9g} and zero point {t.zero_point}"
                for t in (other, ours)
            )
            _refuse(of, f"has tensor '{other.name}' with {had}, the bundle has '{ours.name}' "
                    f"with {has}")  # fmt: skip


def _activations(graph: Graph) -> list[Tensor]:
    outputs = [op.output for op in graph.ops if not isinstance(op, Ending)]
    return [graph.tensors[name] for name in (graph.input, *outputs)]


def _integers(
    graph: Graph,
    ours: Conv | DepthwiseConv,
    theirs: Conv | DepthwiseConv,
    layer: FloatConv,
    of: str,
) -> tuple[Ints, Ints]:
    """Weight and bias in the bundle's steps, in the device's layout.

    A channel of another scale is one that the importer couldn't keep; it may be the bundle's all
    the same, as one of zeros is in any scale.
    """
    if layer.stored is None:
        _refuse(of, f"has the weight of layer '{layer.name}' as real numbers, not as int8")
    weight = stored_layout(theirs, theirs.weight).astype(np.int64)
    bias = theirs.bias.astype(np.int64)
    same = np.isclose(theirs.weight_scale, ours.weight_scale, rtol=_TOLERANCE, atol=0.0)
    for channel in np.flatnonzero(~same):
        step = ours.weight_scale[channel]
        steps = layer.weight[channel] / step
        if np.abs(steps - np.rint(steps)).max() > _WHOLE:
            _refuse(
                of,
                f"has a weight scale of {theirs.weight_scale[channel]:.9g} in channel {channel} of "
                f"layer '{layer.name}', the bundle has {step:.9g}",
            )
        weight[channel] = np.rint(steps)
        bias[channel] = np.rint(layer.bias[channel] / (graph.tensors[ours.input].scale * step))
    return np.ascontiguousarray(device_layout(theirs, weight)), bias


def _head_integers(graph: Graph, read: FloatGraph) -> tuple[Ints, Ints]:
    """The head's real numbers in the bundle's steps: a head trained anew has another range."""
    weight, bias = head_values(read, read.head)
    step = graph.head.weight_scale / 256
    unit = graph.tensors[graph.head.input].scale * step
    return np.rint(weight / step).astype(np.int64), np.rint(bias / unit).astype(np.int64)


def _refuse(of: str, reason: str) -> NoReturn:
    raise VersionError(
        f"{of}: {reason}: it isn't the network of this bundle; train with its layers and scales, "
        "or compile a new bundle from the model"
    )
