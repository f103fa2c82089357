"""The steps of a plan in C: one function per step, each with one kernel call or a chain of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codegen.emit.c_text import channels_name, comment, layer_name, rows
from codegen.graph.ir import Conv, DepthwiseConv, Ending, Operation, inputs_of
from codegen.operators import operator_of
from codegen.program.blob import FROZEN_WEIGHTS, Weights
from codegen.program.step_builder import activation_buffer
from codegen.program.steps import (
    CHAIN,
    INPUT,
    KEEP,
    PHASES,
    SCALES,
    Phase,
    Program,
    Segment,
    Step,
    step_function,
)
from codegen.program.streaming import is_elementwise

_WITH_SPAN = {"convolution_forward", "depthwise_forward"}
_WITHOUT_LAYER = {"error_mask", "error_sum", KEEP}
_LOSSES_OF_TARGETS = {"mean_squared_error", "coded_squared_error"}
_WITH_WEIGHTS = _WITH_SPAN | {"convolution_input_gradient", "depthwise_input_gradient"}


def plan_source(index: int, program: Program, weights: Weights) -> str:
    """The C file of ``program``, which is the bundle's plan number ``index``."""
    writer = StepWriter(index, program, weights)
    lines = [
        f"/* Plan {comment(program.plan.name)}, {program.plan.id}. */",
        '#include "layers.h"',
        '#include "tinyfleet/engine.h"',
        "",
        "/* Each step keeps a symbol of its own, by which a profile finds it. */",
        "#define STEP static __attribute__((noinline, used))",
        "#define ARENA(type, offset) ((type *)(void *)(frame->arena + (offset)))",
        "#define STATE(type, offset) ((type *)(void *)(frame->state + (offset)))",
        "#define WEIGHTS(type, offset) ((const type *)(const void *)(frame->weights + (offset)))",
        *_frozen_weights(weights),
    ]
    if SCALES in program.offsets:
        lines.append(f"#define SCALE(index) (ARENA(tf_scale, {program.offsets[SCALES]}) + (index))")
    lines.append("")
    if any(step.kernel.endswith("_update") for step in program.steps):
        lines += [
            "static tf_update update_of(const tf_frame *frame)",
            "{",
            "    const tf_update update = {",
            "        frame->learning_rate_q20, frame->seed, frame->step_index, "
            f"{program.plan.momentum_q8},",
            f"        frame->step_index % {program.plan.accumulate}u == "
            f"{program.plan.accumulate - 1}u,",
            "    };",
            "    return update;",
            "}",
            "",
        ]
    lines += [
        f"extern const uint16_t {channels_name(index, update.layer)}[];"
        for update in program.plan.weights
    ]
    lines += [f"void plan_{index}_{phase}(tf_frame *frame);" for phase in PHASES]
    lines.append("")
    calls: dict[Phase, list[tuple[Step, str]]] = {phase: [] for phase in PHASES}
    for number, step in enumerate(program.steps):
        name = step_function(index, number, step)
        calls[step.phase].append((step, f"{name}(frame);"))
        lines += [f"STEP void {name}(tf_frame *frame)", "{", *writer.body(step), "}", ""]
    for phase in PHASES:
        lines += [f"void plan_{index}_{phase}(tf_frame *frame)", "{"]
        if phase == "backward" and program.personal_segments:
            lines += _backward_of_some(program, calls[phase])
        else:
            lines += [f"    {call}" for _, call in calls[phase]] or ["    (void)frame;"]
        lines += ["}", ""]
    return "\n".join(lines)


def _backward_of_some(program: Program, calls: Sequence[tuple[Step, str]]) -> list[str]:
    """Backward where personal tensors, or all others, may have to stay as they are.

    Behind the last update of a personal tensor nothing is computed for those.
    """
    personal = [step for step, _ in calls if program.updates_personal(step)]
    lines = []
    for step, call in calls:
        if not step.kernel.endswith("_update"):
            lines.append(f"    {call}")
            continue
        which = "PERSONAL" if program.updates_personal(step) else "SHARED"
        lines += [
            f"    if ((frame->updates & TF_UPDATE_{which}) != 0u) {{",
            f"        {call}",
            "    }",
        ]
        if step is personal[-1]:
            lines += [
                "    if ((frame->updates & TF_UPDATE_SHARED) == 0u) {",
                "        return;",
                "    }",
            ]
    return lines


def _frozen_weights(weights: Weights) -> list[str]:
    if not weights.frozen.tensors:
        return []
    return [
        "#define FROZEN(type, offset) \\",
        f"    ((const type *)(const void *)((const uint8_t *){FROZEN_WEIGHTS} + (offset)))",
        f"extern const uint32_t {FROZEN_WEIGHTS}[];",
    ]


class StepWriter:
    """Writes the kernel call of a step with the addresses of its operands."""

    def __init__(self, index: int, program: Program, weights: Weights) -> None:
        """``index`` is the plan's number in the bundle."""
        self.index = index
        self.program = program
        self.weights = weights

    def body(self, step: Step) -> list[str]:
        """The lines of the step's function."""
        if step.kernel == CHAIN:
            return self._chain(step)
        lines = []
        if step.kernel in _WITH_SPAN:
            lines += self._span(step)
        return [*lines, *self._call(step)]

    def _call(self, step: Step) -> list[str]:
        arguments = self._arguments(step)
        lines = []
        if step.kernel in _WITH_WEIGHTS:
            lines += self._weights(step)
        if step.kernel.endswith("_update"):
            lines.append("    const tf_update update = update_of(frame);")
        if step.kernel.endswith("_weight_update"):
            lines += self._trained(step)
        target = "frame->loss_q16 = " if step.phase == "loss" else ""
        call = f"    {target}tf_{step.kernel}("
        joined = ",\n        ".join(arguments)
        return [*lines, f"{call}{joined});"]

    def _arguments(self, step: Step) -> list[str]:
        if isinstance(step.op, Operation):
            own = operator_of(step.op).arguments.get(step.kernel)
            if own is not None:
                return own(self, step)
        layer = [] if step.kernel in _WITHOUT_LAYER else [self.layer(step)]
        return [*layer, *getattr(self, f"_{step.kernel}")(step)]

    # Chains: a table of rows, and a branch for each stage.

    def _chain(self, step: Step) -> list[str]:
        parts = [f"{{{item.stage}, {item.first}, {item.end}}}" for item in step.schedule]
        lines = [
            "    static const struct {",
            "        uint16_t stage, first, end;",
            "    } schedule[] = {",
            rows(parts, 6),
            "    };",
            f"    for (uint32_t i = 0; i < {len(parts)}u; i++) {{",
            "        const uint16_t first = schedule[i].first, end = schedule[i].end;",
            "        switch (schedule[i].stage) {",
        ]
        for number, stage in enumerate(step.stages):
            lines.append(f"        case {number}: {{")
            if is_elementwise(stage.op):
                body = self._elementwise_rows(step, stage)
            else:
                rings = self._rings(stage, step.rings)
                span = f"    const tf_span span = {{first, end, {rings[0]}, {rings[1]}}};"
                body = [span, *self._call(stage)]
            lines += [f"        {line}".replace("\n", "\n        ") for line in body]
            lines += ["            break;", "        }"]
        return [*lines, "        default:", "            break;", "        }", "    }"]

    def _rings(self, step: Step, rings: Mapping[str, int]) -> tuple[int, int]:
        """Rows that the buffers of input and output hold."""
        op = step.op
        assert isinstance(op, (Conv, DepthwiseConv))
        tensors = self.program.graph.tensors
        source = rings.get(step.buffers["input"], tensors[op.input].shape[0])
        return source, rings.get(step.buffers["output"], tensors[op.output].shape[0])

    def _elementwise_rows(self, chain: Step, step: Step) -> list[str]:
        """An elementwise operation's rows, one call each: rings may wrap between them."""
        writer = _RowWriter(self, chain)
        joined = ",\n            ".join(writer._arguments(step))
        return [
            "    for (uint32_t y = first; y < end; y++) {",
            f"        tf_{step.kernel}({joined});",
            "    }",
        ]

    # Operands.

    def layer_name(self, step: Step) -> str:
        """The constants of the step's operation; of the squared error, those of the loss."""
        name = layer_name(step.op)
        return f"{name}_loss" if step.kernel in _LOSSES_OF_TARGETS else name

    def layer(self, step: Step) -> str:
        """Their address."""
        return f"&{self.layer_name(step)}"

    def elements(self, step: Step) -> str:
        """How many elements an elementwise step goes through: those of its operation's output."""
        assert not isinstance(step.op, Ending)
        return f"{self.program.graph.tensors[step.op.output].size}u"

    def arena(self, step: Step, operand: str, kind: str) -> str:
        """The address of an operand, elements of C type ``kind``; 0 where the step has none."""
        name = step.buffers.get(operand)
        if name is None:
            return "0"
        if name == INPUT:
            return "frame->input"
        return f"ARENA({kind}, {self.program.offsets[name]})"

    def _scale(self, step: Step, operand: str) -> str:
        return f"SCALE({self.program.error_index[step.buffers[operand]]})"

    def _loaded(self, name: str, c_type: str) -> str:
        """A tensor as the plan finds it: in the blob that was loaded, or in the image."""
        published, frozen = self.weights.published.offsets, self.weights.frozen.offsets
        if name in published:
            return f"WEIGHTS({c_type}, {published[name]})"
        return f"FROZEN({c_type}, {frozen[name]})"

    def _parameter(self, step: Step, kind: str, c_type: str) -> str:
        """Biases, and the weights of the head: trained as a whole or not at all."""
        name = f"{step.op.name}.{kind}"
        segment = self.program.segment_of(name)
        if segment is not None:
            return f"STATE({c_type}, {segment.state_offset})"
        return self._loaded(name, c_type)

    def _weights(self, step: Step) -> list[str]:
        name = f"{step.op.name}.weight"
        segment = self.program.segment_of(name)
        fixed, trained, channels, count = self._loaded(name, "int8_t"), "0", "0", 0
        if segment is not None:
            trained = f"STATE(int8_t, {segment.state_offset})"
            op = step.op
            assert isinstance(op, (Conv, DepthwiseConv))
            if segment.count == op.weight.shape[-1]:
                fixed, trained = trained, "0"
            else:
                channels, count = channels_name(self.index, step.op.name), segment.count
        return [f"    const tf_weights weights = {{{fixed}, {trained}, {channels}, {count}}};"]

    def _span(self, step: Step) -> list[str]:
        op = step.op
        assert isinstance(op, (Conv, DepthwiseConv))
        source, output = self._rings(step, {})
        return [f"    static const tf_span span = {{0, {output}, {source}, {output}}};"]

    def _trained(self, step: Step) -> list[str]:
        segment = self.program.segment_of(f"{step.op.name}.weight")
        assert segment is not None
        fraction = segment.fraction_offset
        op = step.op
        assert isinstance(op, (Conv, DepthwiseConv))
        whole = step.buffers["input"] == activation_buffer(self.program.graph, op.input)
        in_channels = self.program.graph.tensors[op.input].shape[2] if whole else segment.count
        return [
            "    const tf_trained trained = {",
            f"        STATE(int8_t, {segment.state_offset}),",
            f"        {'0' if fraction is None else f'STATE(int8_t, {fraction})'},",
            f"        {self._velocity(segment)},",
            f"        {segment.first_value}, {channels_name(self.index, step.op.name)}, "
            f"{segment.count}, {in_channels},",
            "    };",
        ]

    # One method per kernel: the arguments after the layer.

    def _convolution_forward(self, step: Step) -> list[str]:
        return [*self._depthwise_forward(step), f"{step.at_once}u"]

    def _depthwise_forward(self, step: Step) -> list[str]:
        return [
            "&span",
            self.arena(step, "input", "int8_t"),
            "&weights",
            self._parameter(step, "bias", "int32_t"),
            self.arena(step, "output", "int8_t"),
            self.arena(step, "mask", "uint8_t"),
            self.arena(step, "scratch", "int16_t"),
        ]

    def _keep_channels(self, step: Step) -> list[str]:
        op = step.op
        assert isinstance(op, (Conv, DepthwiseConv))
        height, width, channels = self.program.graph.tensors[op.input].shape
        segment = self.program.segment_of(f"{op.name}.weight")
        assert segment is not None
        return [
            channels_name(self.index, op.name),
            f"{segment.count}u",
            self.arena(step, "input", "int8_t"),
            f"{channels}u",
            f"{height * width}u",
            self.arena(step, "output", "int8_t"),
        ]

    def _head_forward(self, step: Step) -> list[str]:
        return [
            self.arena(step, "input", "int8_t"),
            self._parameter(step, "weight", "int16_t"),
            self._parameter(step, "bias", "int32_t"),
            "frame->logits",
        ]

    def _cross_entropy(self, step: Step) -> list[str]:
        return ["frame->logits", "frame->label", *self.error_in(step)]

    _binary_cross_entropy = _cross_entropy

    def _mean_squared_error(self, step: Step) -> list[str]:
        return ["frame->logits", "frame->input", *self.error_in(step)]

    def _coded_squared_error(self, step: Step) -> list[str]:
        return [self.arena(step, "input", "int8_t"), "frame->input", *self.error_in(step)]

    def error_in(self, step: Step) -> list[str]:
        """The error that the step reads, or the loss makes: codes and scale."""
        return [self.arena(step, "error", "int16_t"), self._scale(step, "error")]

    def error_out(self, step: Step) -> list[str]:
        """The error that the step makes: codes and scale."""
        return [self.arena(step, "out", "int16_t"), self._scale(step, "out")]

    def _head_input_gradient(self, step: Step) -> list[str]:
        weights = self._parameter(step, "weight", "int16_t")
        return [*self.error_in(step), weights, *self.error_out(step)]

    def _depthwise_input_gradient(self, step: Step) -> list[str]:
        return [
            *self.error_in(step),
            "&weights",
            *self.error_out(step),
            self.arena(step, "scratch", "int16_t"),
        ]

    def _convolution_input_gradient(self, step: Step) -> list[str]:
        return [*self._depthwise_input_gradient(step), f"{step.at_once}u"]

    def _error_mask(self, step: Step) -> list[str]:
        return [*self.error_in(step), self.arena(step, "mask", "uint8_t"), self.elements(step)]

    def _error_sum(self, step: Step) -> list[str]:
        size = self.program.graph.tensors[inputs_of(step.op)[step.operand]].size
        return [
            self.arena(step, "a", "int16_t"),
            self._scale(step, "a"),
            self.arena(step, "b", "int16_t"),
            self._scale(step, "b"),
            f"{size}u",
        ]

    def _whole(self, step: Step, kind: str) -> str:
        segment = self.program.segment_of(f"{step.op.name}.{kind}")
        assert segment is not None
        return f"&(const tf_whole){{{self._velocity(segment)}, {segment.first_value}u}}"

    def _velocity(self, segment: Segment) -> str:
        offset = segment.velocity_offset
        return "0" if offset is None else f"STATE(int32_t, {offset})"

    def _bias_update(self, step: Step) -> list[str]:
        bias = self._parameter(step, "bias", "int32_t")
        return [*self.error_in(step), bias, self._whole(step, "bias"), "&update"]

    def _head_update(self, step: Step) -> list[str]:
        return [
            *self.error_in(step),
            self.arena(step, "input", "int8_t"),
            self._parameter(step, "weight", "int16_t"),
            self._whole(step, "weight"),
            self._parameter(step, "bias", "int32_t"),
            self._whole(step, "bias"),
            "&update",
        ]

    def _convolution_weight_update(self, step: Step) -> list[str]:
        return [
            *self.error_in(step),
            self.arena(step, "input", "int8_t"),
            "&trained",
            "&update",
            self.arena(step, "scratch", "int16_t"),
        ]

    _depthwise_weight_update = _convolution_weight_update


class _RowWriter(StepWriter):
    """Writes calls of one stage of a chain for row ``y`` of its tensors alone."""

    def __init__(self, writer: StepWriter, chain: Step) -> None:
        super().__init__(writer.index, writer.program, writer.weights)
        self._rings_of_chain = chain.rings

    def _row(self, step: Step) -> tuple[int, int]:
        """Rows of the output, and elements of each."""
        assert not isinstance(step.op, Ending)
        height, width, channels = self.program.graph.tensors[step.op.output].shape
        return height, width * channels

    def arena(self, step: Step, operand: str, kind: str) -> str:
        address = super().arena(step, operand, kind)
        if operand not in step.buffers:
            return address
        height, row = self._row(step)
        ring = self._rings_of_chain.get(step.buffers[operand], height)
        at = "y" if ring == height else f"y % {ring}u"
        return f"{address} + {at} * {row}u"

    def elements(self, step: Step) -> str:
        return f"{self._row(step)[1]}u"
