"""The layers of a graph in C: one constant struct each, shared by all plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codegen.arithmetic.layers import (
    Gain,
    addition_arithmetic,
    convolution_arithmetic,
    head_arithmetic,
    pooling_arithmetic,
)
from codegen.arithmetic.pools import (
    average_pool_arithmetic,
    overlap_bits,
    reconstruction_arithmetic,
    requantize_arithmetic,
)
from codegen.emit.c_text import layer_name, rows
from codegen.graph.ir import (
    Add,
    AveragePool,
    Concat,
    Conv,
    DepthwiseConv,
    GlobalAveragePool,
    Graph,
    Head,
    MaxPool,
    Requantize,
)
from codegen.program.steps import Program

_STRUCTS: dict[type, str] = {
    Conv: "tf_convolution",
    DepthwiseConv: "tf_convolution",
    Add: "tf_addition",
    GlobalAveragePool: "tf_pooling",
    MaxPool: "tf_pool_window",
    AveragePool: "tf_average_pooling",
    Requantize: "tf_requantization",
    Head: "tf_head",
}


def layers_header(graph: Graph) -> str:
    """Declarations of the layers of ``graph``."""
    lines = [
        "#ifndef TINYFLEET_LAYERS_H",
        "#define TINYFLEET_LAYERS_H",
        "",
        '#include "tinyfleet/kernels.h"',
        "",
    ]
    for op in graph.ops:
        if isinstance(op, Concat):
            lines.append(f"extern const tf_slice {layer_name(op)}[{len(op.inputs)}];")
        else:
            lines.append(f"extern const {_STRUCTS[type(op)]} {layer_name(op)};")
    if graph.head.loss == "mse":
        lines.append(f"extern const tf_reconstruction {layer_name(graph.head)}_loss;")
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
            case Add():
                lines += _addition(graph, op)
            case GlobalAveragePool():
                lines += _pooling(graph, op)
            case MaxPool():
                lines += [f"const tf_pool_window {layer_name(op)} = {{", *_window(graph, op), "};"]
            case AveragePool():
                lines += _average_pooling(graph, op)
            case Concat():
                lines += _slices(graph, op)
            case Requantize():
                lines += _requantization(graph, op)
            case Head():
                lines += _head(graph, op)
        lines.append("")
    return "\n".join(lines)


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
        f"const tf_convolution {name} = {{",
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


def _addition(graph: Graph, op: Add) -> list[str]:
    constants = addition_arithmetic(graph, op)
    a, b = (graph.tensors[name] for name in op.inputs)
    out = graph.tensors[op.output]
    return [
        f"const tf_addition {layer_name(op)} = {{",
        f"    {a.zero_point}, {b.zero_point}, {out.zero_point},",
        f"    {constants.a_multiplier}, {constants.b_multiplier}, {constants.shift},",
        f"    {constants.a_error_multiplier}, {constants.b_error_multiplier},",
        f"    {constants.a_error_exponent}, {constants.b_error_exponent},",
        "};",
    ]


def _pooling(graph: Graph, op: GlobalAveragePool) -> list[str]:
    constants = pooling_arithmetic(graph, op)
    height, width, channels = graph.tensors[op.input].shape
    return [
        f"const tf_pooling {layer_name(op)} = {{",
        f"    {height * width}, {channels},",
        f"    {constants.error_multiplier}, {constants.error_exponent},",
        "};",
    ]


def _window(graph: Graph, op: MaxPool | AveragePool) -> list[str]:
    source, output = graph.tensors[op.input].shape, graph.tensors[op.output].shape
    return [
        f"    {source[0]}, {source[1]}, {source[2]}, {output[0]}, {output[1]},",
        f"    {op.window[0]}, {op.window[1]}, {op.stride[0]}, {op.stride[1]},",
        f"    {op.padding.top}, {op.padding.left}, {overlap_bits(op)},",
    ]


def _average_pooling(graph: Graph, op: AveragePool) -> list[str]:
    constants = average_pool_arithmetic(graph, op)
    name, counted = layer_name(op), op.counted
    lines = []
    requantize = "0"
    if constants.requantize:
        requantize = f"{name}_requantize"
        words = rows([m.word for m in constants.requantize], 8)
        lines += [f"static const tf_multiplier {requantize}[] = {{", words, "};"]
    return [
        *lines,
        f"static const int16_t {name}_error_multiplier[] = {{",
        rows(constants.error_multiplier, 12),
        "};",
        f"const tf_average_pooling {name} = {{",
        "    {",
        *(f"    {line}" for line in _window(graph, op)),
        "    },",
        f"    {counted.top}, {counted.left}, {counted.bottom}, {counted.right},",
        f"    {graph.tensors[op.input].zero_point}, {graph.tensors[op.output].zero_point},",
        f"    {constants.least_count}, {requantize}, {constants.pre_shift},",
        f"    {name}_error_multiplier, {constants.error_exponent},",
        "};",
    ]


def _slices(graph: Graph, op: Concat) -> list[str]:
    height, width, whole = graph.tensors[op.output].shape
    lines = [f"const tf_slice {layer_name(op)}[{len(op.inputs)}] = {{"]
    first = 0
    for name in op.inputs:
        channels = graph.tensors[name].shape[2]
        lines.append(f"    {{{height * width}u, {whole}, {first}, {channels}}},")
        first += channels
    return [*lines, "};"]


def _requantization(graph: Graph, op: Requantize) -> list[str]:
    constants = requantize_arithmetic(graph, op)
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    return [
        f"const tf_requantization {layer_name(op)} = {{",
        f"    {source.zero_point}, {output.zero_point}, {op.low}, {op.high},",
        f"    {constants.requantize.word}, {constants.pre_shift},",
        f"    {constants.error_multiplier}, {constants.error_exponent},",
        "};",
    ]


def _reconstruction(graph: Graph, op: Head) -> list[str]:
    constants = reconstruction_arithmetic(graph, op)
    return [
        f"const tf_reconstruction {layer_name(op)}_loss = {{",
        f"    {op.bias.size}, {graph.tensors[graph.input].zero_point},",
        f"    {_gain(constants.input_scale)}, {_gain(constants.error_scale)},",
        "};",
    ]


def _head(graph: Graph, op: Head) -> list[str]:
    constants = head_arithmetic(graph)
    classes, channels = op.weight.shape
    return [
        f"const tf_head {layer_name(op)} = {{",
        f"    {channels}, {classes}, {graph.tensors[op.input].zero_point},",
        f"    {_gain(constants.loss)},",
        f"    {constants.error_multiplier}, {constants.error_exponent},",
        f"    {_gain(constants.weight_gain)}, {_gain(constants.bias_gain)},",
        "};",
        *(_reconstruction(graph, op) if op.loss == "mse" else []),
    ]
