"""ONNX file → float graph.

One small handler per operator, in the table `HANDLERS` of `codegen.onnx_handlers`; a new operator
is one more row. Handlers fold what the device doesn't have: batch normalization and constant sums
go into the convolution before them, Relu and Clip become the clamp of the operation before them,
and what changes nothing in inference (Identity, Dropout, Flatten of a vector, Softmax at the end)
becomes another name for its input. In quantized models (QuantizeLinear and DequantizeLinear around
every operation) these two also only rename tensors, but scales, zero points and stored integers
are kept. What can't be imported is refused with the node, the operator, the attribute and the
remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from codegen.errors import ModelError
from codegen.float_graph import ChannelsFirst, FloatGraph, FloatPool
from codegen.onnx_graph import ImportState
from codegen.onnx_handlers import AFTER_HEAD, HANDLERS, SUPPORTED_OPERATORS, unsupported

__all__ = ["OLDEST_OPSET", "SUPPORTED_OPERATORS", "import_model", "import_proto"]

OLDEST_OPSET = 13

# What onnx and numpy raise for tensors and attributes whose parts don't agree.
_DAMAGE = (ValueError, TypeError, KeyError, IndexError, OverflowError)


def import_model(path: Path | str) -> FloatGraph:
    """Reads an ONNX file. Raises ModelError for a file that is missing, damaged or unsupported."""
    path = Path(path)
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; give the path of an ONNX model") from error
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: not a readable ONNX file ({error}); export it again") from error
    return import_proto(model, path.stem)


def import_proto(model: onnx.ModelProto, name: str | None = None) -> FloatGraph:
    """Turns a loaded ONNX model into a float graph. Raises ModelError as `import_model` does."""
    _check_opset(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the model breaks the ONNX rules: {reason}; export it again") from error
    try:
        return _run(ImportState(model.graph, name or model.graph.name or "model"))
    except _DAMAGE as error:
        raise ModelError(f"the model contradicts itself ({error}); export it again") from error


def _check_opset(model: onnx.ModelProto) -> None:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(
            "the file names no ONNX opset (empty or not an ONNX model); "
            f"export it with opset {OLDEST_OPSET} or later"
        )
    if versions[0] < OLDEST_OPSET:
        raise ModelError(
            f"the model uses ONNX opset {versions[0]}; export it with opset {OLDEST_OPSET} or "
            "later (or convert it with onnx.version_converter)"
        )


def _run(state: ImportState) -> FloatGraph:
    for node in state.nodes:
        handler = HANDLERS.get(node.operator)
        if handler is None:
            node.refuse(unsupported(node.operator))
        if state.logits is not None and node.operator not in AFTER_HEAD:
            node.refuse(
                "comes after the classifier; the one Gemm or MatMul must be the last layer "
                "(write hidden fully connected layers as 1x1 Conv)"
            )
        handler(state, node)
    if state.logits is None or state.alias.get(state.graph_outputs[0]) != state.logits:
        raise ModelError(
            f"output '{state.graph_outputs[0]}' isn't made by a classifier; the model must end "
            "in a Gemm, or MatMul and Add, with an optional Softmax"
        )
    shapes = {name: shape for name, shape in state.shapes.items() if name != state.logits}
    _check_codings(state, shapes)
    return FloatGraph(state.name, state.input, shapes, tuple(state.ops.values()), state.codings)


def _check_codings(state: ImportState, tensors: Mapping[str, ChannelsFirst]) -> None:
    """A model is quantized as a whole or not at all."""
    pools = {op.output: op.input for op in state.ops.values() if isinstance(op, FloatPool)}
    bare = [name for name in tensors if name not in state.codings and name not in pools]
    if state.codings and bare:
        raise ModelError(
            f"tensor '{bare[0]}' has no QuantizeLinear, though {len(state.codings)} others have "
            "one; quantize every activation, or give the float model and a calibration set"
        )
