"""What a row of the table of operators says: everything that the compiler knows of an operation.

The stages of the compiler look rows up (`codegen.operators.operator_of`) and pass in what they work
with: the builder of steps, the interpreter, the writer of C. What most operations have in common
is the default here; `Linear` has that of those whose errors are scaled and nothing else, `Copying`
that of those that bring codes to other places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeAlias, TypeVar, cast

import numpy as np

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.graph.floats import Clamp, Values
from codegen.graph.ir import INT8_MAX, INT8_MIN, Graph, Operation, inputs_of

if TYPE_CHECKING:  # stages above, which pass themselves in
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.importer.nodes import Node
    from codegen.importer.state import ImportState
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter

Real = TypeVar("Real", bound=Operation)
Kind = TypeVar("Kind", bound=Operation)

Kernel: TypeAlias = "Callable[[Interpreter, Step], None]"
Arguments: TypeAlias = "Callable[[StepWriter, Step], list[str]]"


@dataclass(frozen=True)
class Handler:
    """How the importer reads an ONNX operator, and what the page of operators says of it.

    ``becomes`` and ``limits`` are sentences without their full stop; ``limits`` is what isn't
    taken. ``renames``: values stay as they are, so that the operator may follow the Softmax at
    the end.
    """

    read: Callable[[ImportState, Node], None]
    becomes: str
    limits: str = ""
    renames: bool = False


@dataclass(frozen=True)
class Table:
    """A constant array beside an operation's struct, with so many values per line.

    One that serves a ``kernel`` alone is left out where no plan calls that.
    """

    c_type: str
    values: Sequence[object]
    per_line: int
    kernel: str | None = None


class Operator(ABC, Generic[Real, Kind]):
    """One row: an operation without weights.

    ``Real`` is its class in the float graph, ``Kind`` that in the quantized one: the same, but
    where the float graph says an activation in real numbers.
    Arrays of codes are int64 (..., height, width, channels), real ones float64 (N, C, H, W).
    """

    real: ClassVar[type[Operation]]
    kind: ClassVar[type[Operation]]

    # Import.

    handlers: ClassVar[Mapping[str, Handler]] = {}
    """By ONNX operator; spellings that need more than the state stand in `codegen.importer`."""

    # Real numbers.

    keeps_coding: ClassVar[bool] = False
    """Whether it makes codes of its input's scale where nothing else is asked for."""
    scales_by_channel: ClassVar[bool] = False
    """Whether a channel of the output scales with that channel of the input and no other."""

    @abstractmethod
    def evaluate(self, op: Real, inputs: Sequence[Values]) -> Values:
        """What ``op`` makes of its inputs, in real numbers."""

    def quantize(self, op: Real, assembly: Assembly) -> None:
        """Appends the quantized operations and their tensors: by default itself and its output."""
        if self.keeps_coding and not assembly.is_coded(op.output):
            (source,) = inputs_of(op)
            assembly.keep_coding(source, op.output)
        else:
            assembly.add_tensor(op.output)
        assembly.ops.append(op)

    # The device's integers.

    @abstractmethod
    def forward(self, graph: Graph, op: Kind, inputs: Sequence[Ints]) -> Ints:
        """What ``op`` makes of its inputs' codes, before the clamp."""

    def ends(self, op: Kind) -> tuple[int, int]:
        """The codes to which the output is clamped."""
        return INT8_MIN, INT8_MAX

    def saturates(self, graph: Graph, op: Kind) -> bool:
        """Whether the clamp may change a code, so that errors pass through a mask."""
        return True

    @abstractmethod
    def gradients(
        self, graph: Graph, op: Kind, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        """What each input gets of the error of the output, exactly: both in steps, (H, W, C).

        ``inputs`` are codes, ``error`` is 0 where the clamp has changed one.
        """

    # Program.

    kernel: ClassVar[str]
    """Kernels are named by it: ``KERNEL_forward`` and, as a rule, ``KERNEL_input_gradient``."""
    operands: ClassVar[tuple[str, ...]] = ("input",)
    """The forward kernel's names for its inputs."""
    one_step_per_input: ClassVar[bool] = False
    """Whether the forward kernel is called for one input after the other."""
    elementwise: ClassVar[bool] = False
    """Whether an element of the output needs just those in its place: rows can be made one by one,
    in the place of the inputs."""

    @property
    def gradient_kernel(self) -> str:
        """The kernel that makes an input's error."""
        return f"{self.kernel}_input_gradient"

    def build_forward(self, builder: StepBuilder, op: Kind, buffers: dict[str, str]) -> None:
        """Adds the forward steps; ``buffers`` has the output, and a mask where one is needed."""
        for operand, tensor in zip(self.operands, inputs_of(op), strict=True):
            buffers[operand] = builder.activation(tensor)
        lead = self.overlap_lead(builder.graph, op)
        if lead is not None:
            for operand in self.operands:
                builder.may_overlap(buffers["output"], buffers[operand], lead)
        builder.step("forward", f"{self.kernel}_forward", op, buffers)

    def overlap_lead(self, graph: Graph, op: Kind) -> int | None:
        """Bytes before an input's start at which the output may, over it; None: it may not."""
        return 0 if self.elementwise else None

    def build_backward(self, builder: StepBuilder, op: Kind) -> None:
        """Adds a step for each input that needs an error: if elementwise, in the place of the
        output's."""
        error = self.error(builder, op)
        for operand, tensor in enumerate(inputs_of(op)):
            if tensor in builder.needs_error:
                builder.propagate(
                    self.gradient_kernel,
                    op,
                    tensor,
                    error,
                    operand=operand,
                    in_place=self.elementwise,
                )

    def error(self, builder: StepBuilder, op: Kind) -> dict[str, str]:
        """What the gradient's kernel reads: the output's error, after the mask if there is one."""
        return builder.masked(op) if self.saturates(builder.graph, op) else builder.error(op)

    # Interpreter.

    def op_of(self, step: Step) -> Kind:
        """The operation of ``step``."""
        assert isinstance(step.op, self.kind)
        return cast(Kind, step.op)

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """The kernels of its steps in numpy."""
        return {
            f"{self.kernel}_forward": self.run_forward,
            self.gradient_kernel: self.run_input_gradient,
        }

    def run_forward(self, interpreter: Interpreter, step: Step) -> None:
        """Stores output and mask."""
        inputs = [interpreter.arrays[step.buffers[operand]] for operand in self.operands]
        interpreter.store(step, self.forward(interpreter.graph, self.op_of(step), inputs))

    @abstractmethod
    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        """Stores the error of an input in `Interpreter.errors`."""

    # Emission.

    struct: ClassVar[str]
    """The C type of its constants."""

    @abstractmethod
    def fields(self, graph: Graph, op: Kind, tables: Mapping[str, str]) -> list[str]:
        """Lines of the struct's initializer; ``tables`` has those that there are in C, others 0."""

    def tables(self, graph: Graph, op: Kind) -> dict[str, Table]:
        """Arrays to which the struct points, by name."""
        return {}

    def struct_count(self, op: Kind) -> int | None:
        """How many structs it has in an array; None for one by itself."""
        return None

    @property
    def arguments(self) -> Mapping[str, Arguments]:
        """What each kernel is called with."""
        return {
            f"{self.kernel}_forward": self.forward_arguments,
            self.gradient_kernel: self.input_gradient_arguments,
        }

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        """Struct, inputs, output; if elementwise, mask and number of elements as well."""
        codes = [writer.arena(step, name, "int8_t") for name in (*self.operands, "output")]
        if self.elementwise:
            codes += [writer.arena(step, "mask", "uint8_t"), writer.elements(step)]
        return [writer.layer(step), *codes]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        """Struct, error of the output, error of the input."""
        return [writer.layer(step), *writer.error_in(step), *writer.error_out(step)]

    # Export.

    @abstractmethod
    def export(self, writer: ModelWriter, op: Kind, layer: Layer) -> str:
        """Writes the same integers in ONNX's operators; returns the name of the codes."""


class Linear(Operator[Real, Kind]):
    """An elementwise operation that is linear in each input: ``error_scale`` makes its errors."""

    elementwise = True

    @abstractmethod
    def error_factor(self, graph: Graph, op: Kind, operand: int) -> tuple[int, int]:
        """An input's steps in those of the output: a Q15 integer, and a power of two."""

    def error_field(self, operand: int) -> str:
        """What stands before ``error_multiplier`` and ``error_exponent`` in the struct."""
        return ""

    def gradients(
        self, graph: Graph, op: Kind, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        """The error in the steps of each input."""
        scale = graph.tensors[op.output].scale
        return [error * graph.tensors[name].scale / scale for name in inputs_of(op)]

    @property
    def gradient_kernel(self) -> str:
        """One for all of them."""
        return "error_scale"

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        """The error in the steps of the step's operand."""
        factor, power = self.error_factor(interpreter.graph, self.op_of(step), step.operand)
        error = interpreter.error_in(step)
        codes = round_shift(error.codes * factor, 15 - error.headroom)
        interpreter.errors[step.buffers["out"]] = Error(
            codes, error.exponent + power - error.headroom
        )

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        """Error of the output, the operand's factor, number of elements, error of the input."""
        layer = f"{writer.layer_name(step)}.{self.error_field(step.operand)}"
        return [
            *writer.error_in(step),
            f"{layer}error_multiplier",
            f"{layer}error_exponent",
            writer.elements(step),
            *writer.error_out(step),
        ]


class Copying(Operator[Kind, Kind]):
    """An operation of one input whose output has codes of that and zeros, in places of their own:
    always of its scale and zero point."""

    keeps_coding = True

    def quantize(self, op: Kind, assembly: Assembly) -> None:
        """Appends itself, and its output coded as its input is."""
        (source,) = inputs_of(op)
        assembly.keep_coding(source, op.output)
        assembly.ops.append(op)

    def saturates(self, graph: Graph, op: Kind) -> bool:
        """No code is changed."""
        return False


def activated(values: Values, clamp: Clamp) -> Values:
    """Real values after an activation."""
    return np.minimum(np.maximum(values, clamp.low), clamp.high)
