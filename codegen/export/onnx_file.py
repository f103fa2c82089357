"""Versions as ONNX files in integers, and the values of such a file that came back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import numpy_helper

from codegen.arithmetic.integers import Ints
from codegen.arithmetic.layers import logit_scale
from codegen.errors import VersionError
from codegen.export.integer_model import INPUT, OUTPUT, device_layout, integer_model
from codegen.export.version_blob import values_of_blob
from codegen.firmware.bundle import Bundle
from codegen.firmware.graph_file import load_graph
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head
from codegen.importer.qoperator import QOPERATORS
from codegen.program.blob import Weights, with_values

ONNX_FORMAT = "tinyfleet-onnx/1"


def export_onnx(bundle: Bundle, weights: bytes | None, path: Path) -> None:
    """Writes a version of the weights of ``bundle`` as an ONNX model that computes what devices do.

    ``weights`` is the version's blob; None takes those that the bundle was compiled with. The model
    takes int8 codes (N, height, width, channels), as devices and the manifest's ``model.input``
    have them, and gives int32 outputs, equal to a device's bit for bit (where they are codes, these
    less their zero point). It is in integer operators, not in QDQ form: whatever stands between
    QuantizeLinear and DequantizeLinear is float32, which rounds otherwise (of MCUNet's codes 0.7 %
    come out different, by up to nine steps). Published and frozen tensors are initializers named as
    in the manifest.

    Raises VersionError for weights that aren't of the bundle, BundleError for a bundle without its
    graph.
    """
    graph, split = load_graph(bundle)
    data = bundle.weights if weights is None else weights
    model = integer_model(
        with_values(graph, values_of_blob(graph, split, data)), _metadata(bundle, graph, split)
    )
    try:
        Path(path).write_bytes(model.SerializeToString())
    except OSError as error:
        raise VersionError(
            f"{path}: can't be written ({error.strerror}); choose another path"
        ) from error


def _metadata(bundle: Bundle, graph: Graph, weights: Weights) -> dict[str, str]:
    """What a trainer needs to know of the integers: the real value of one step of each."""
    source = graph.tensors[graph.input]
    tensors = {
        tensor.name: {"step": tensor.step, "limit": tensor.limit, "frozen": frozen}
        for part, frozen in ((weights.published, False), (weights.frozen, True))
        for tensor in part.tensors
    }
    return {
        "tinyfleet.format": ONNX_FORMAT,
        "tinyfleet.model_digest": bundle.manifest.model.digest,
        "tinyfleet.input": json.dumps({"scale": source.scale, "zero_point": source.zero_point}),
        "tinyfleet.output_scale": json.dumps(logit_scale(graph)),
        "tinyfleet.tensors": json.dumps(tensors),
    }


def is_export(model: onnx.ModelProto) -> bool:
    """Whether a file takes codes and computes with them as integers, as exports do.

    Quantized models that take codes say what they stand for.
    """
    inputs = [entry.type.tensor_type.elem_type for entry in model.graph.input]
    scaled = ("DequantizeLinear", *QOPERATORS)
    return onnx.TensorProto.INT8 in inputs and not any(
        node.op_type in scaled for node in model.graph.node
    )


def values_of_export(model: onnx.ModelProto, graph: Graph, of: str) -> dict[str, Ints]:
    """Values of all tensors of ``graph`` in an export that came back from training.

    Raises VersionError, which names it, for whatever else was changed. ``of`` is the file's name.
    """
    wanted = integer_model(graph).graph
    _check_ends(model.graph, wanted, of)
    _check_nodes(model.graph, wanted, of)
    try:
        found = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    except (ValueError, TypeError) as error:
        raise VersionError(f"{of}: its constants can't be read ({error}); save it again") from error
    layers = {op.name: op for op in graph.ops if isinstance(op, (Conv, DepthwiseConv, Head))}
    tensors = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    values = {}
    for entry in wanted.initializer:
        expected, name = numpy_helper.to_array(entry), entry.name
        if name not in found:
            _refuse(of, f"has no constant {name!r}")
        value = found[name]
        if (value.dtype, value.shape) != (expected.dtype, expected.shape):
            _refuse(
                of,
                f"has {name!r} as {value.dtype} {list(value.shape)}, the bundle has it as "
                f"{expected.dtype} {list(expected.shape)}",
            )
        if name in tensors:
            layer, _, kind = name.rpartition(".")
            wide = value.astype(np.int64)
            values[name] = device_layout(layers[layer], wide) if kind == "weight" else wide
        elif not np.array_equal(value, expected):
            _refuse(of, f"has another constant {name!r}, which scales and shapes make")
    return values


def _check_ends(found: onnx.GraphProto, wanted: onnx.GraphProto, of: str) -> None:
    shapes = [
        [(dim.dim_value or None) for dim in entry.type.tensor_type.shape.dim][1:]
        for graph in (found, wanted)
        for entry in graph.input
        if entry.name == INPUT
    ]
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        had = f"of {shapes[0]}" if len(shapes) == 2 else "of another name"
        _refuse(of, f"has an input {had}, the bundle's is {INPUT!r} of {shapes[-1]}")
    if OUTPUT not in [entry.name for entry in found.output]:
        _refuse(of, f"has no output {OUTPUT!r}")


def _check_nodes(found: onnx.GraphProto, wanted: onnx.GraphProto, of: str) -> None:
    theirs, ours = ({node.output[0]: node for node in g.node} for g in (found, wanted))
    for name, node in ours.items():
        if name not in theirs:
            _refuse(of, f"has no node {name!r} ({node.op_type})")
        if _said(theirs[name]) != _said(node):
            _refuse(of, f"has another node {name!r} ({theirs[name].op_type})")
    for name, node in theirs.items():
        if name not in ours:
            _refuse(of, f"has node {name!r} ({node.op_type}), which the bundle's network hasn't")


def _said(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    plain = {name: list(v) if hasattr(v, "__len__") else v for name, v in attributes.items()}
    return node.domain, node.op_type, list(node.input), list(node.output), plain


def _refuse(of: str, reason: str) -> NoReturn:
    raise VersionError(
        f"{of}: {reason}: it isn't the network of this bundle; give an export of the bundle in "
        "which only values of tensors (LAYER.weight, LAYER.bias) have changed"
    )
