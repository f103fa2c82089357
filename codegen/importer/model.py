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
import graphlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions

from codegen.errors import ModelError
from codegen.graph.floats import (
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatTensorOutput,
    LossChoice,
)
from codegen.graph.ir import MOST_BINARY_OUTPUTS, Loss, Padding, label_count
from codegen.importer.constants import Constants, computed
from codegen.importer.distributed import find_distributed
from codegen.importer.draft import DraftGraph
from codegen.importer.handlers import (
    CONTROL_FLOW,
    HANDLERS,
    LEFT_OVER,
    SUPPORTED_OPERATORS,
    unsupported,
)
from codegen.importer.loops import find_loops, refuse_loop
from codegen.importer.loss import Outputs, choose_loss
from codegen.importer.nodes import Node, named_nodes
from codegen.importer.normalization import find_normalizations, lay_out_normalizations
from codegen.importer.outputs import Choice, choose_output
from codegen.importer.padding import pads_to_max_pools
from codegen.importer.passes import PASSES
from codegen.importer.qoperator import to_qdq
from codegen.importer.quant import quant_to_qdq
from codegen.importer.quantized import ON_CODES, follow_integers
from codegen.importer.spelled_codes import find_spelled_codes
from codegen.importer.state import Affine, ImportState
from codegen.importer.unrolled import find_unrolled
from codegen.importer.upsampling import COORDINATES_BEFORE, NEAREST_BEFORE
from codegen.importer.views import Roles, View, picture_roles
from codegen.operators.transpose import Transpose

__all__ = ["OLDEST_OPSET", "SUPPORTED_OPERATORS", "import_model", "import_proto", "load_file"]

OLDEST_OPSET = 13

_OPSET_OF_COORDINATES = 11  # from which on a Resize says where its pixels lie

_LEFT_OVER = "the exporter has left it as it was; change the model, or its opset"

# What onnx says of an operator that came with a later opset.
_UNKNOWN_TO_OPSET = re.compile(r"No Op registered for (\w+) with domain_version")

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
        model = _with_blanks_filled(model)
        onnx.checker.check_model(model)
        if model.functions:
            model = inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError, *_DAMAGE) as error:
        _check_operators(model.graph)
        reason = " ".join(str(error).split())[:_REASON]
        raise ModelError(
            f"the model breaks the ONNX rules: {reason}; export it again{_with_opset(reason)}"
        ) from error
    notes = []
    if opset < OLDEST_OPSET:
        model = _converted(model, opset)
        notes.append(f"the model's ONNX opset {opset} was converted to opset {OLDEST_OPSET}")
        opset = OLDEST_OPSET
    try:
        state = ImportState(model.graph, name or model.graph.name or "model")
        state, chosen, draft, result = _either_order(state, model.graph, opset, output)
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
    own = any(node.domain in ("", "ai.onnx") for node in model.graph.node)
    if not versions and model.opset_import and not own:
        return OLDEST_OPSET  # of none of ONNX's own operators
    if not versions:
        raise ModelError(
            "the file names no ONNX opset (empty or not an ONNX model); "
            f"export it with opset {OLDEST_OPSET} or later"
        )
    return int(versions[0])


def _with_opset(reason: str) -> str:
    """With which opset a model must be exported that breaks the rules for ``reason``, '' if any."""
    if "GroupNormalization is deprecated" in reason:
        # GroupNormalization came with opset 18 and again, with other constants, with 21.
        return " with a later opset (21)"
    found = _UNKNOWN_TO_OPSET.search(reason)
    history = onnx.defs.get_all_schemas_with_history() if found is not None else ()
    since = [
        schema.since_version
        for schema in history
        if found is not None and schema.name == found[1] and not schema.domain
    ]
    return f" with opset {min(since)} or later" if since else ""


def _with_blanks_filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with what ONNX's checker asks for and nothing here needs: the graph's name, types
    of outputs, versions of other domains' operators, nodes behind those that they read.

    Tools that cut models, put nodes into them (graphsurgeon) or have operators of their own (FINN)
    leave these out. An input without a shape gets an empty one.
    """
    blank = any(_lacks_shape(entry.type) for entry in (*model.graph.input, *model.graph.output))
    used = {node.domain for node in model.graph.node if isinstance(node.domain, str)}
    unsaid = used - {entry.domain for entry in model.opset_import} - {"", "ai.onnx"}
    order = _sorted_nodes(model.graph)
    if model.graph.name and not blank and not unsaid and order is None:
        return model
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    filled.graph.name = model.graph.name or "model"
    filled.opset_import.extend(onnx.helper.make_opsetid(name, 1) for name in sorted(unsaid))
    for entry in (*filled.graph.input, *filled.graph.output):
        if _lacks_shape(entry.type):
            tensor = entry.type.tensor_type
            tensor.elem_type = tensor.elem_type or onnx.TensorProto.FLOAT
            tensor.shape.SetInParent()
    if order is not None:
        del filled.graph.node[:]
        filled.graph.node.extend(model.graph.node[place] for place in order)
    return filled


def _sorted_nodes(graph: onnx.GraphProto) -> list[int] | None:
    """Places of the nodes, each behind those that it reads; None where they stand so already."""
    nodes = named_nodes(graph)
    makers = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
    sources = {
        place: {makers[name] for name in node.reads if name in makers}
        for place, node in enumerate(nodes)
    }
    if all(source < place for place, read in sources.items() for source in read):
        return None
    try:
        return list(graphlib.TopologicalSorter(sources).static_order())
    except graphlib.CycleError:
        return None


def _lacks_shape(kind: onnx.TypeProto) -> bool:
    is_tensor = kind.WhichOneof("value") in (None, "tensor_type")
    return is_tensor and not kind.tensor_type.HasField("shape")


def _check_operators(graph: onnx.GraphProto) -> None:
    """Refuses operators that ONNX never had, which exporters leave of another framework's."""
    for node in graph.node:
        known = not isinstance(node.op_type, str) or onnx.defs.has(node.op_type)  # bytes: damaged
        if node.domain in ("", "ai.onnx") and not known:
            remedy = LEFT_OVER.get(node.op_type, _LEFT_OVER)
            raise ModelError(
                f"node '{node.name}' ({node.op_type}): isn't an operator of ONNX: {remedy}"
            )


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """``model``, which is valid, with the operators of `OLDEST_OPSET`."""
    try:
        converted = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except (
        onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError,
        ValueError,
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"the model uses ONNX opset {opset}, which can't be converted ({reason}); export it "
            f"with opset {OLDEST_OPSET} or later"
        ) from error
    for node in converted.graph.node if opset < _OPSET_OF_COORDINATES else ():
        if node.op_type == "Resize":  # the converter leaves it to the defaults of today's
            node.attribute.append(helper.make_attribute(*COORDINATES_BEFORE))
            node.attribute.append(helper.make_attribute(*NEAREST_BEFORE))
    return converted


_Import = tuple[ImportState, Choice, DraftGraph, View]


def _either_order(
    state: ImportState, graph: onnx.GraphProto, opset: int, output: str | None
) -> _Import:
    """What `_read` makes of the file, with the input's channels first or last.

    What comes before the first convolution, as a crop does, doesn't tell which: where it is
    refused, or has to be put in another order, it is the other one if that comes further, or has
    less to be put in order.
    """
    made: _Import | None = None
    refusal: ModelError | None = None
    try:
        made = (state, *_read(state, opset, output))
    except ModelError as error:
        refusal = error
    moved = math.inf if made is None else _transposes(made[2])
    last = state.with_channels_last(graph) if moved else None
    if last is not None:
        try:
            other: _Import = (last, *_read(last, opset, output))
        except ModelError as error:
            if refusal is not None and last.progress > state.progress:
                refusal = error
        else:
            further = made is not None or last.progress > state.progress
            if further and _transposes(other[2]) < moved:
                return other
    if made is None:
        assert refusal is not None
        raise refusal
    return made


def _transposes(draft: DraftGraph) -> int:
    return sum(isinstance(op, Transpose) for op in draft.ops.values())


def _read(state: ImportState, opset: int, output: str | None) -> tuple[Choice, DraftGraph, View]:
    """What the file computes: which of its outputs, how, and what of the draft that is."""
    to_qdq(state)
    quant_to_qdq(state, opset)
    find_spelled_codes(state)
    find_normalizations(state)
    constants = Constants(state.nodes, state.constants, opset)
    find_loops(state, constants)
    find_unrolled(state, constants)
    find_distributed(state, constants)
    pads_to_max_pools(state, constants)
    chosen = choose_output(state.nodes, state.outputs, output, state.constants)
    return chosen, *_run(state, chosen, constants)


def _run(state: ImportState, chosen: Choice, constants: Constants) -> tuple[DraftGraph, View]:
    """The draft in its normal form, and the model's output."""
    _check_control_flow(state, chosen.nodes, constants)
    for node in chosen.nodes:
        _read_node(state, chosen, constants, node)
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


def _check_control_flow(state: ImportState, nodes: Sequence[Node], constants: Constants) -> None:
    """Refuses control flow that can't be taken, before what only decides about it is."""
    decided = set(state.constants)  # by constants and shapes alone
    for node in nodes:
        names = {name for name in node.inputs if name}
        fixed = all(name in decided or constants.value(name) is not None for name in names)
        if node.operator in ("Shape", "Size") or fixed:
            decided.update(node.outputs)
        if node.operator == "Loop":
            refuse_loop(node, constants)
        if node.operator in CONTROL_FLOW and not (node.operator == "If" and fixed):
            node.refuse(unsupported(node.operator))


def _read_node(state: ImportState, chosen: Choice, constants: Constants, node: Node) -> None:
    """Adds what the node makes to the state: a constant, or another view, or operations."""
    if _is_constant(state, node):
        state.constants.update(computed(node, state.constants, constants.opset))
        follow_integers(state, node)
        return
    if node.operator == "If":
        _take_branch(state, chosen, constants, node)
        return
    if chosen.sigmoid and node.outputs[0] == chosen.sigmoid:
        view = state.view(node)
        if not _makes_picture(state, view):
            state.views[chosen.sigmoid] = dataclasses.replace(view, after="Sigmoid")
            return
    handler = HANDLERS.get(node.operator)
    if handler is None:
        node.refuse(unsupported(node.operator))
    end, behind = state.end_before(node)
    if end and not handler.renames:
        node.refuse(
            f"reads the output of a {end}, behind which only reshapes are supported. Where the "
            f"network ends with it, say --output {behind}; inside of a network train it with a "
            "Sigmoid in its place"
        )
    on_codes = state.reads_codes(node)
    if on_codes and node.operator not in ON_CODES:
        node.refuse(
            "computes with an activation in integers, which it takes for real numbers; put "
            "DequantizeLinear before it"
        )
    handler.read(state, node)
    state.progress += 1
    state.note_rearranged(node)
    if on_codes and ON_CODES[node.operator]:
        state.codes[node.outputs[0]] = state.codes[node.input(0)]


def _take_branch(state: ImportState, chosen: Choice, constants: Constants, node: Node) -> None:
    """Reads the branch of an If that constants and shapes have decided for."""
    taken = bool(state.constant(node, 0, "condition").reshape(-1)[0])
    branch = node.attributes["then_branch" if taken else "else_branch"]
    state.constants.update(
        (entry.name, numpy_helper.to_array(entry)) for entry in branch.initializer
    )
    nodes = named_nodes(branch)
    _check_control_flow(state, nodes, constants)
    for inner in nodes:
        _read_node(state, chosen, constants, inner)
    for output, made in zip(node.outputs, branch.output, strict=True):
        _read_node(
            state, chosen, constants,
            dataclasses.replace(
                node, operator="Identity", inputs=(made.name,), outputs=(output,), attributes={},
                proto=onnx.helper.make_node("Identity", [made.name], [output]),
            ),
        )  # fmt: skip


def _in_order(state: ImportState, name: str, result: View) -> View:
    """The output, of a tensor whose channels, height and width are its dimensions if it is a
    picture, in the places that these have in an input of its shape.

    A matrix at the end sorts its outputs itself.
    """
    if result.tensor not in state.shapes:
        return result  # nothing says what its axes are; there is no layer
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
    groups = list(zip(source.dims, result.dims, strict=False))
    if result.sizes != source.sizes or any(
        [axis.size for axis in one] != [axis.size for axis in other] for one, other in groups
    ):
        return None
    axes = {axis: same for one, other in groups for axis, same in zip(one, other, strict=True)}
    sides = (roles.channels, roles.height, roles.width)
    return Roles(*(tuple(axes[axis] for axis in side) for side in sides))


def _is_constant(state: ImportState, node: Node) -> bool:
    """Whether the node computes with constants only (shapes are constants, too)."""
    names = [name for name in node.inputs if name]
    known = bool(names) and all(name in state.constants for name in names)
    if node.is_foreign or node.operator in _NEVER_COMPUTED:
        return False
    return known or node.operator == "ConstantOfShape"


def _makes_picture(state: ImportState, view: View) -> bool:
    """Whether a Sigmoid at the end of the network is part of it: that of answers is the loss's."""
    if math.prod(state.shapes.get(view.tensor, ())[1:]) > 1:
        return True  # no matrix has made it
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
