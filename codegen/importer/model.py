"""ONNX file → float graph.

Every node of the file goes through one small handler, in the table `HANDLERS` of
`codegen.importer.handlers`; an operation's own handlers stand in its row of `codegen.operators`.
Operations of the file become operations of a draft, or other views of the same tensor where they
only move or rename values; what depends on constants and shapes alone is computed. Then the passes
of `codegen.importer.passes` bring the draft into the float graph's normal form. In quantized models
(QuantizeLinear and DequantizeLinear around every operation) these two only rename tensors, but
scales, zero points and stored integers are kept. What can't be imported is refused with the node,
the operator, the attribute and the remedy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from codegen.errors import ModelError
from codegen.graph.floats import (
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatTensorOutput,
    LossChoice,
)
from codegen.graph.ir import MOST_BINARY_OUTPUTS, Loss, Padding, label_count
from codegen.importer.draft import DraftGraph
from codegen.importer.handlers import (
    CONTROL_FLOW,
    HANDLERS,
    SUPPORTED_OPERATORS,
    unsupported,
)
from codegen.importer.loss import Outputs, choose_loss
from codegen.importer.nodes import Node
from codegen.importer.normalization import find_normalizations, lay_out_normalizations
from codegen.importer.outputs import Choice, choose_output
from codegen.importer.passes import PASSES
from codegen.importer.qoperator import to_qdq
from codegen.importer.quantized import ON_CODES, follow_integers
from codegen.importer.state import Affine, ImportState
from codegen.importer.views import Roles, View, picture_roles

__all__ = ["OLDEST_OPSET", "SUPPORTED_OPERATORS", "import_model", "import_proto", "load_file"]

OLDEST_OPSET = 13

_ONNXRUNTIME, _FOUR_BITS = "com.microsoft", 21

_REASON = 300  # characters of a reason that onnx gives; its sentences go over several lines

# What onnx and numpy raise for tensors and attributes whose parts don't agree.
_DAMAGE = (ValueError, TypeError, KeyError, IndexError, OverflowError)

# Of constants, too, these need their handler, or the refusal that there is none.
_NEVER_COMPUTED = ("Constant", "DequantizeLinear", *CONTROL_FLOW)


def import_model(
    path: Path | str,
    loss: Loss | LossChoice | None = None,
    samples: Path | str | None = None,
    output: str | None = None,
) -> FloatGraph:
    """Reads an ONNX file.

    ``loss`` says what the model is trained with; without it the model says so, or the labels of
    ``samples`` (see `choose_loss`). ``output`` is which of several outputs is the network's, where
    the others aren't made of it (see `choose_output`).

    Raises ModelError for a file that is missing, damaged or unsupported, and where the loss can't
    be known; CalibrationError for ``samples`` that can't be read.
    """
    return import_proto(load_file(path), Path(path).stem, loss, samples, output)


def load_file(path: Path | str) -> onnx.ModelProto:
    """An ONNX file as it stands. Raises ModelError for one that is missing or damaged."""
    path = Path(path)
    try:
        # The format is said, or a name that ends in .json would make it be read as JSON.
        return onnx.load(str(path), format="protobuf")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; give the path of an ONNX model") from error
    except onnx.checker.ValidationError as error:
        raise _unreadable_data(path, error) from error
    except (DecodeError, OSError, ValueError) as error:
        remedy = _remedy_of_kind(path) or "export it again"
        raise ModelError(f"{path}: not a readable ONNX file ({error}); {remedy}") from error


def _remedy_of_kind(path: Path) -> str:
    """What makes an ONNX file of a model of another kind, '' where it is none that is known."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return ""
    if head[4:] == b"TFL3":
        return (
            "it is a TFLite model: convert it with python -m tf2onnx.convert --opset 15 --tflite "
            f"{path.name} --output MODEL.onnx"
        )
    if head.startswith((b"PK\x03\x04", b"\x89HDF")):
        return (
            "it looks like one of PyTorch or Keras: export it from there (torch.onnx.export, "
            "tf2onnx, model.export with format='onnx')"
        )
    return ""


def _unreadable_data(path: Path, error: Exception) -> ModelError:
    """What to do about weights that a file says are in another one."""
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    named = dict.fromkeys(
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    )
    missing = [name for name in named if not (path.parent / name).is_file()]
    if not missing:
        return ModelError(f"{path}: not a readable ONNX file ({error}); export it again")
    return ModelError(
        f"{path}: its weights are in {', '.join(missing)}, which isn't beside it in {path.parent}; "
        "put it there under that name"
    )


def import_proto(
    model: onnx.ModelProto,
    name: str | None = None,
    loss: Loss | LossChoice | None = None,
    samples: Path | str | None = None,
    output: str | None = None,
) -> FloatGraph:
    """Turns a loaded ONNX model into a float graph; options and errors are `import_model`'s."""
    opset = _opset_of(model)
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = inline_local_functions(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_REASON]
        # GroupNormalization came with opset 18 and again, with other constants, with 21.
        later = " with a later opset (21)" if "is deprecated" in reason else ""
        raise ModelError(
            f"the model breaks the ONNX rules: {reason}; export it again{later}"
        ) from error
    notes = []
    if opset < OLDEST_OPSET:
        model = _converted(model, opset)
        notes.append(f"the model's ONNX opset {opset} was converted to opset {OLDEST_OPSET}")
        opset = OLDEST_OPSET
    try:
        state = ImportState(model.graph, name or model.graph.name or "model")
        to_qdq(state)
        find_normalizations(state)
        chosen = choose_output(state.nodes, state.outputs, output, state.constants)
        draft, result = _run(state, chosen, opset)
    except _DAMAGE as error:
        raise ModelError(f"the model contradicts itself ({error}); export it again") from error
    outputs = _outputs(state, draft, chosen, result)
    choice = choose_loss(outputs, loss, samples)
    _set_loss(state, draft, result, choice)
    choice = dataclasses.replace(
        choice,
        output=chosen.tensor,
        output_because=chosen.because,
        class_names=_class_names(chosen, label_count(choice.loss, outputs.count)),
    )
    return _finished(state, draft, choice, notes)


def _class_names(chosen: Choice, labels: int) -> tuple[str, ...]:
    """Names of ``labels`` classes that say more than their numbers."""
    numbers = tuple(map(str, range(labels)))
    return chosen.names if len(chosen.names) == labels and chosen.names != numbers else ()


def _opset_of(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(
            "the file names no ONNX opset (empty or not an ONNX model); "
            f"export it with opset {OLDEST_OPSET} or later"
        )
    return int(versions[0])


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """``model``, which is valid, with the operators of `OLDEST_OPSET`."""
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"the model uses ONNX opset {opset}, which can't be converted ({reason}); export it "
            f"with opset {OLDEST_OPSET} or later"
        ) from error


def _run(state: ImportState, chosen: Choice, opset: int) -> tuple[DraftGraph, View]:
    """The draft in its normal form, and the model's output."""
    for node in chosen.nodes:  # before what only decides about it
        if node.operator in CONTROL_FLOW:
            node.refuse(unsupported(node.operator))
    for node in chosen.nodes:
        if _is_constant(state, node):
            _compute(state, node, opset)
            continue
        if chosen.sigmoid and node.outputs[0] == chosen.sigmoid:
            view = state.view(node)
            if not _makes_picture(state, view):
                state.views[chosen.sigmoid] = dataclasses.replace(view, after="Sigmoid")
                continue
        handler = HANDLERS.get(node.operator)
        if handler is None:
            node.refuse(unsupported(node.operator))
        end = state.end_before(node)
        if end and not handler.renames:
            node.refuse(
                f"reads the output of a {end}, behind which only reshapes are supported; export "
                "the model without what follows"
            )
        on_codes = state.reads_codes(node)
        if on_codes and node.operator not in ON_CODES:
            node.refuse(
                "computes with an activation in integers, which it takes for real numbers; put "
                "DequantizeLinear before it"
            )
        handler.read(state, node)
        state.note_rearranged(node)
        if on_codes and ON_CODES[node.operator]:
            state.codes[node.outputs[0]] = state.codes[node.input(0)]
    result = state.views.get(chosen.tensor)
    if result is None:
        raise ModelError(
            f"output '{chosen.tensor}' isn't computed from the model's input; export it again"
        )
    if result.padding != Padding():
        raise ModelError(
            f"output '{chosen.tensor}' has zeros around it that nothing reads; export the model "
            "without the Pad at its end"
        )
    result = _in_order(state, chosen.tensor, result)
    lay_out_normalizations(state)
    state.lay_out_constants()
    draft = DraftGraph(state.input, result.tensor, state.ops, state.shapes, state.codings)
    for run_pass in PASSES:
        run_pass(draft)
    return draft, result


def _in_order(state: ImportState, name: str, result: View) -> View:
    """The output, of a tensor whose channels, height and width are its dimensions if it is a
    picture, in the places that these have in an input of its shape.

    A matrix at the end sorts its outputs itself.
    """
    roles, last = state.roles_of(result.tensor), state.ops.get(result.tensor)
    by_matrix = isinstance(last, FloatConv | Affine) and roles.height == roles.width == ()
    if by_matrix or result.dims[0] != () or len(result.dims) not in (3, 4) or result.after:
        return result
    wanted = _like_input(state, result)
    sides = (roles.channels, roles.height, roles.width)
    if wanted is None and all(group in sides for group in result.dims if group != ()):
        return result
    return state.transposed(name, result, wanted or picture_roles(result.dims))


def _like_input(state: ImportState, result: View) -> Roles | None:
    """The output's dimensions as what those of the input are, where it has as many entries."""
    source, roles = state.views[state.input], state.roles_of(state.input)
    sides = (roles.channels, roles.height, roles.width)
    if result.sizes != source.sizes or any(side not in source.dims for side in sides):
        return None
    return Roles(*(result.dims[source.dims.index(side)] if side else () for side in sides))


def _is_constant(state: ImportState, node: Node) -> bool:
    """Whether the node computes with constants only (shapes are constants, too)."""
    names = [name for name in node.inputs if name]
    known = bool(names) and all(name in state.constants for name in names)
    if node.is_foreign or node.operator in _NEVER_COMPUTED:
        return False
    return known or node.operator == "ConstantOfShape"


def _compute(state: ImportState, node: Node, opset: int) -> None:
    """The node's outputs, as ONNX's reference implementation computes them."""
    inputs = {name: state.constants[name] for name in node.inputs if name}
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
              for name in inputs]  # fmt: skip
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
               for name in node.outputs if name]  # fmt: skip
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    if proto.domain == _ONNXRUNTIME:  # the same as ONNX's own, but it came before that took 4 bits
        proto.domain, opset = "", max(opset, _FOUR_BITS)
    graph = onnx.helper.make_graph([proto], node.name, values, results)
    opsets = [onnx.helper.make_opsetid("", opset)]
    try:
        evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
        outputs = [np.asarray(value) for value in evaluator.run(None, inputs)]
    except Exception as error:  # the reference implementation raises whatever numpy does
        node.refuse(f"can't be computed from its constants ({error}); export the model again")
    for result, value in zip(results, outputs, strict=True):
        state.constants[result.name] = value
    follow_integers(state, node)


def _makes_picture(state: ImportState, view: View) -> bool:
    """Whether a Sigmoid at the end of the network is part of it: that of answers is the loss's."""
    sizes = [size for size in view.sizes if size > 1]
    count = math.prod(sizes)
    return count > MOST_BINARY_OUTPUTS and (
        len(sizes) > 1 or count == math.prod(state.sample_shape)
    )


def _outputs(state: ImportState, draft: DraftGraph, chosen: Choice, result: View) -> Outputs:
    return Outputs(
        state.name,
        chosen.tensor,
        tuple(size for size in result.sizes if size > 1),
        tuple(size for size in state.sample_shape if size > 1),
        result.after,
        chosen.largest,
        coded=isinstance(draft.ops[draft.output], FloatTensorOutput),
    )


def _set_loss(state: ImportState, draft: DraftGraph, result: View, choice: LossChoice) -> None:
    """Gives the ending its loss, and a head's rows the file's order of outputs, or the input's.

    Raises ModelError for a picture that is to be the input, but has its axes in another order.
    """
    ending = draft.ops[draft.output]
    roles = state.roles_of(result.tensor)
    rows = [*roles.channels, *roles.height, *roles.width]
    order = [rows.index(axis) for group in result.dims for axis in group]
    place = np.arange(math.prod(roles.shape)).reshape([axis.size for axis in rows])
    place = place.transpose(order)
    layout = state.sample_layout
    if choice.loss == "mse" and choice.target_scale is None and layout is not None:
        place = place.reshape(1, *state.sample_shape)
        place = layout.arrange(place, state.shapes[state.input])
    chosen = place.reshape(-1)
    if isinstance(ending, FloatTensorOutput):
        same = draft.shapes[ending.input] == draft.shapes[draft.input]
        if choice.loss == "mse" and not (same and np.array_equal(chosen, np.sort(chosen))):
            shown, wanted = (list(draft.shapes[name]) for name in (ending.input, draft.input))
            raise ModelError(
                f"model '{state.name}': its output is a picture {shown} whose values don't stand "
                f"for the input's {wanted} one by one: export it with the output's dimensions in "
                "the order of the input's"
            )
        draft.ops[draft.output] = dataclasses.replace(ending, loss=choice.loss)
        return
    assert isinstance(ending, FloatHead)
    draft.ops[draft.output] = dataclasses.replace(
        ending,
        weight=ending.weight[chosen],
        bias=ending.bias[chosen],
        loss=choice.loss,
        target_scale=choice.target_scale,
    )


def _finished(
    state: ImportState, draft: DraftGraph, choice: LossChoice, notes: Sequence[str]
) -> FloatGraph:
    ops = [op for op in draft.ops.values() if not isinstance(op, Affine)]
    tensors = {draft.input} | {op.output for op in ops} - {draft.output}
    codings = {name: coding for name, coding in draft.codings.items() if name in tensors}
    shapes = {name: shape for name, shape in draft.shapes.items() if name in tensors}
    return FloatGraph(
        state.name,
        state.input,
        shapes,
        tuple(ops),
        codings,
        state.sample_layout,
        choice,
        tuple(notes),
        integer_input=state.input in state.codes,
    )
