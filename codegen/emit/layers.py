"""The layers of a graph in C: one constant struct each, shared by all plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codegen.arithmetic.layers import (
    Gain,
    convolution_arithmetic,
    head_arithmetic,
    target_arithmetic,
)
from codegen.emit.c_text import layer_name, rows
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head, Operation, TensorOutput
from codegen.operators import operator_of
from codegen.program.steps import Program


def layers_header(graph: Graph) -> str:
    """Declarations of the layers of ``graph``."""
    lines = [
        "#ifndef TINYFLEET_LAYERS_H",
        "#define TINYFLEET_LAYERS_H",
        "",
        '#include "tinyfleet/kernels.h"',
        "",
    ]
    ending = graph.ending
    lines += [f"extern {_declaration(op)};" for op in graph.ops if not isinstance(op, TensorOutput)]
    if ending.loss == "mse":
        lines.append(f"extern const {_target_struct(ending)} {layer_name(ending)}_loss;")
    return "\n".join([*lines, "", "#endif", ""])


def layers_source(graph: Graph, programs: Sequence[Program]) -> str:
    """The layers of ``graph``, as far as ``programs`` use them."""
    used = {
        (call.op.name, call.kernel)
        for program in programs
        for step in program.steps
        for call in step.calls()
    }
    lines = ['#include "layers.h"', ""]
    for op in graph.ops:
        match op:
            case Conv() | DepthwiseConv():
                kernels = {kernel for name, kernel in used if name == op.name}
                lines += _convolution(graph, op, kernels)
            case Head():
                lines += _head(graph, op)
            case TensorOutput():
                lines += _target(graph, op) if op.loss == "mse" else []
            case _:
                lines += _operation(graph, op, {kernel for name, kernel in used if name == op.name})
        lines.append("")
    return "\n".join(lines)


def _declaration(op: Conv | DepthwiseConv | Operation | Head) -> str:
    name = layer_name(op)
    match op:
        case Conv() | DepthwiseConv():
            return f"const tf_convolution {name}"
        case Head():
            return f"const tf_head {name}"
        case _:
            operator = operator_of(op)
            count = operator.struct_count(op)
            return f"const {operator.struct} {name}" + ("" if count is None else f"[{count}]")


def _operation(graph: Graph, op: Operation, kernels: set[str]) -> list[str]:
    """The struct of an operation without weights, after the tables to which it points."""
    operator = operator_of(op)
    lines, tables = [], {}
    for suffix, table in operator.tables(graph, op).items():
        tables[suffix] = "0"
        if table.kernel is None or table.kernel in kernels:
            tables[suffix] = f"{layer_name(op)}_{suffix}"
            values = rows(table.values, table.per_line)
            lines += [f"static const {table.c_type} {tables[suffix]}[] = {{", values, "};"]
    fields = [f"    {line}" for line in operator.fields(graph, op, tables)]
    return [*lines, f"{_declaration(op)} = {{", *fields, "};"]


def _gain(gain: Gain) -> str:
    return f"0x{gain.word:08x}u"


def _convolution(graph: Graph, op: Conv | DepthwiseConv, kernels: set[str]) -> list[str]:
    """The layer's struct; tables that serve only kernels which no plan calls are left out."""
    constants = convolution_arithmetic(graph, op)
    name = layer_name(op)
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
    lines: list[str] = []

    def table(c_type: str, suffix: str, values: Iterable[object], per_line: int, user: str) -> str:
        if not any(used.endswith(user) for used in kernels):
            return "0"
        lines.extend(
            [f"static const {c_type} {name}_{suffix}[] = {{", rows(values, per_line), "};"]
        )
        return f"{name}_{suffix}"

    weight_gain, bias_gain = map(_gain, constants.weight_gain), map(_gain, constants.bias_gain)
    tables = [
        table("tf_multiplier", "requantize", constants.requantize, 8, "_forward"),
        table("uint8_t", "pre_shift", constants.pre_shift, 16, "_forward")
        if constants.pre_shift.any()
        else "0",
        table("int16_t", "error_multiplier", constants.error_multiplier, 12, "_input_gradient"),
        table("tf_gain", "weight_gain", weight_gain, 8, "_weight_update"),
        table("tf_gain", "bias_gain", bias_gain, 8, "bias_update"),
    ]
    return [
        *lines,
        f"{_declaration(op)} = {{",
        f"    {source.shape[0]}, {source.shape[1]}, {source.shape[2]},",
        f"    {target.shape[0]}, {target.shape[1]}, {target.shape[2]},",
        f"    {kernel[0]}, {kernel[1]}, {op.stride[0]}, {op.stride[1]},",
        f"    {op.padding.top}, {op.padding.left},",
        f"    {source.zero_point}, {target.zero_point},",
        f"    {tables[0]}, {tables[1]}, {constants.bias_limit},",
        f"    {tables[2]}, {constants.error_exponent},",
        f"    {constants.error_headroom}, {constants.error_shift}, {constants.gradient_shift},",
        f"    {tables[3]}, {tables[4]},",
        "};",
    ]


def _target_struct(op: Head | TensorOutput) -> str:
    return "tf_coded_target" if isinstance(op, TensorOutput) else "tf_target"


def _target(graph: Graph, op: Head | TensorOutput) -> list[str]:
    constants, source = target_arithmetic(graph, op), graph.tensors[graph.input]
    zero_point, targets_at = (source.zero_point, 0) if op.reconstructs else (0, source.size)
    fields = [
        f"{op.outputs}, {zero_point}, {targets_at},",
        f"{_gain(constants.target_scale)}, {_gain(constants.error_scale)},",
    ]
    if constants.loss_scale is not None:
        of_tensor = graph.tensors[op.input].zero_point
        fields = ["{", *fields, "},", f"{of_tensor}, {_gain(constants.loss_scale)},"]
    lines = [f"    {field}" for field in fields]
    return [f"const {_target_struct(op)} {layer_name(op)}_loss = {{", *lines, "};"]


def _head(graph: Graph, op: Head) -> list[str]:
    constants = head_arithmetic(graph)
    classes, channels = op.weight.shape
    return [
        f"{_declaration(op)} = {{",
        f"    {channels}, {classes}, {graph.tensors[op.input].zero_point},",
        f"    {_gain(constants.loss)},",
        f"    {constants.error_multiplier}, {constants.error_exponent},",
        f"    {_gain(constants.weight_gain)}, {_gain(constants.bias_gain)},",
        "};",
        *(_target(graph, op) if op.loss == "mse" else []),
    ]
