"""Product: two tensors element by element; squeeze-and-excite and other gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints, requantized, round_shift
from codegen.arithmetic.layers import relative_q15, requantization
from codegen.graph.floats import NO_CLAMP, Clamp, Values
from codegen.graph.ir import Graph, Variadic
from codegen.operators.base import Arguments, Kernel, Operator, activated
from codegen.operators.broadcast import (
    ERROR_MAX,
    broadcast_fields,
    sum_shift,
    summed,
    to_codes,
)

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class FloatProduct(Variadic):
    """Elementwise product of two tensors; the second may have size 1 where the first has more."""

    clamp: Clamp = NO_CLAMP


@dataclass(frozen=True)
class Product(Variadic):
    """The same in codes, each tensor with its own scale; the clamp to [-128, 127] is the
    activation function."""


@dataclass(frozen=True)
class ProductArithmetic:
    """What ``tf_product`` holds."""

    word: int
    pre_shift: int
    error_multiplier: int
    error_exponent: int
    sum_shift: int


def product_arithmetic(graph: Graph, op: Product) -> ProductArithmetic:
    """Constants of one product."""
    a, b = (graph.tensors[name] for name in op.inputs)
    out = graph.tensors[op.output]
    factor = np.array([a.scale * b.scale / out.scale])
    words, left = requantization(factor)
    error, exponent = relative_q15(factor)
    shift = sum_shift(b, out, 255 * ERROR_MAX)
    return ProductArithmetic(int(words[0]), int(left[0]), int(error[0]), exponent, shift)


class _ProductOperator(Operator[FloatProduct, Product]):
    real = FloatProduct
    kind = Product
    kernel = "product"
    operands = ("a", "b")
    struct = "tf_product"

    def evaluate(self, op: FloatProduct, inputs: Sequence[Values]) -> Values:
        return activated(inputs[0] * inputs[1], op.clamp)

    def quantize(self, op: FloatProduct, assembly: Assembly) -> None:
        assembly.add_tensor(op.output)
        assembly.ops.append(Product(op.name, op.inputs, op.output))

    def _centred(self, graph: Graph, op: Product, inputs: Sequence[Ints]) -> list[Ints]:
        pairs = zip(inputs, op.inputs, strict=True)
        return [codes - graph.tensors[name].zero_point for codes, name in pairs]

    def forward(self, graph: Graph, op: Product, inputs: Sequence[Ints]) -> Ints:
        by = product_arithmetic(graph, op)
        a, b = self._centred(graph, op, inputs)
        values = requantized(a * b, by.pre_shift, np.array(by.word))
        return values + graph.tensors[op.output].zero_point

    def gradients(
        self, graph: Graph, op: Product, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        scales = [graph.tensors[name].scale for name in (*op.inputs, op.output)]
        unit = scales[0] * scales[1] / scales[2]
        a, b = self._centred(graph, op, inputs)
        return [error * b * unit, summed(error * a, b.shape) * unit]

    def _is_whole(self, graph: Graph, op: Product) -> bool:
        """Whether both inputs have the output's shape."""
        return graph.tensors[op.inputs[1]].shape == graph.tensors[op.output].shape

    def build_forward(self, builder: StepBuilder, op: Product, buffers: dict[str, str]) -> None:
        over = self.operands if self._is_whole(builder.graph, op) else self.operands[:1]
        for operand, tensor in zip(self.operands, op.inputs, strict=True):
            buffers[operand] = builder.activation(tensor)
            if operand in over:
                builder.may_overlap(buffers["output"], buffers[operand], 0)
        builder.step("forward", "product_forward", op, buffers)

    def build_backward(self, builder: StepBuilder, op: Product) -> None:
        error = builder.masked(op)
        for operand, tensor in enumerate(op.inputs):
            if tensor not in builder.needs_error:
                continue
            buffers = {**error, "other": builder.activation(op.inputs[1 - operand])}
            kernel = self.gradient_kernel
            if operand == 1 and not self._is_whole(builder.graph, op):
                kernel = "product_reduced_gradient"
                size = 4 * builder.graph.tensors[tensor].size
                buffers["scratch"] = builder.buffer(f"sums {op.name}", size)
            in_place = kernel == self.gradient_kernel
            builder.propagate(kernel, op, tensor, buffers, operand=operand, in_place=in_place)

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        return {**super().kernels, "product_reduced_gradient": self.run_reduced_gradient}

    def _other(self, interpreter: Interpreter, step: Step) -> Ints:
        """The input that isn't the step's operand, less its zero point."""
        name = self.op_of(step).inputs[1 - step.operand]
        codes = interpreter.arrays[step.buffers["other"]]
        return codes - interpreter.graph.tensors[name].zero_point

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        by = product_arithmetic(interpreter.graph, self.op_of(step))
        error = interpreter.error_in(step)
        products = (error.codes << error.headroom) * self._other(interpreter, step)
        interpreter.errors[step.buffers["out"]] = Error(
            round_shift(products * by.error_multiplier, 23),
            error.exponent - error.headroom + by.error_exponent + 8,
        )

    def run_reduced_gradient(self, interpreter: Interpreter, step: Step) -> None:
        """Stores the error of an input that stands for more elements than it has."""
        op, graph = self.op_of(step), interpreter.graph
        by = product_arithmetic(graph, op)
        error = interpreter.error_in(step)
        products = (error.codes << error.headroom) * self._other(interpreter, step)
        sums = summed(round_shift(products, by.sum_shift), graph.tensors[op.inputs[1]].shape)
        codes, power = to_codes(sums, by.error_multiplier)
        interpreter.errors[step.buffers["out"]] = Error(
            codes, error.exponent - error.headroom + by.sum_shift + by.error_exponent + power
        )

    def fields(self, graph: Graph, op: Product, tables: Mapping[str, str]) -> list[str]:
        by = product_arithmetic(graph, op)
        a, b = (graph.tensors[name] for name in op.inputs)
        out = graph.tensors[op.output]
        return [
            f"{{{broadcast_fields(b.shape, out.shape, by.sum_shift)}}},",
            f"{a.zero_point}, {b.zero_point}, {out.zero_point},",
            f"{by.word}, {by.pre_shift},",
            f"{by.error_multiplier}, {by.error_exponent},",
        ]

    @property
    def arguments(self) -> Mapping[str, Arguments]:
        return {**super().arguments, "product_reduced_gradient": self.reduced_gradient_arguments}

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        return [*super().forward_arguments(writer, step), writer.arena(step, "mask", "uint8_t")]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        zero = f"{writer.layer_name(step)}.{self.operands[1 - step.operand]}_zero"
        other = writer.arena(step, "other", "int8_t")
        error = [writer.layer(step), *writer.error_in(step)]
        return [*error, other, zero, *writer.error_out(step)]

    def reduced_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        """Struct, error of the output, the other input, error of the input, scratch."""
        other = writer.arena(step, "other", "int8_t")
        error = [writer.layer(step), *writer.error_in(step)]
        scratch = writer.arena(step, "scratch", "int32_t")
        return [*error, other, *writer.error_out(step), scratch]

    def export(self, writer: ModelWriter, op: Product, layer: Layer) -> str:
        by = product_arithmetic(writer.graph, op)
        sides = zip(self.operands, op.inputs, strict=True)
        centred = [
            layer.centred(side, writer.codes[name], writer.zero(name)) for side, name in sides
        ]
        product = layer.node("Mul", "products", *centred)
        left, word = np.array(by.pre_shift), np.array(by.word)
        return layer.requantized(product, left, word, writer.zero(op.output))


PRODUCT = _ProductOperator()
