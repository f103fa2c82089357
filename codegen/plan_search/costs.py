"""What a selection costs on a board: taken from its compiled program, not from a formula.

The program (``codegen.program.lowering.lower``) tells arena, state and the values of the delta; a
training step's instructions are estimated from its calls (``codegen.program.instructions``). The
rest of the SRAM (link, samples, stack, other data) doesn't depend on what is trained; it is
measured once in a linked image (``rest_of``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.bundle import PlanReport
from codegen.graph.ir import Graph
from codegen.plan_search.candidates import ChannelOrder, Selection, channel_counts, plan_spec
from codegen.program.instructions import estimated_instructions, instructions_of
from codegen.program.lowering import lower
from codegen.program.plans import Plan, State, resolve
from codegen.program.steps import Program

CodedBytes = Callable[[NDArray[np.int32]], int]
"""Bytes that values of a delta take on the link: the coding is the fleet's, not the compiler's."""


@dataclass(frozen=True)
class Round:
    """What a device trains on before it sends a delta: so many samples, so many times over."""

    samples: int = 64
    epochs: int = 1

    def __str__(self) -> str:
        """For people."""
        return f"{self.samples:,} samples, {self.epochs} epoch{'s' if self.epochs > 1 else ''}"


@dataclass(frozen=True)
class Costs:
    """Costs of one plan: SRAM of the firmware, coded delta of one round, one step of training."""

    sram_bytes: int
    delta_bytes: int
    instructions: int

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.sram_bytes:,} bytes of SRAM, {self.delta_bytes:,} bytes of delta, "
            f"{self.instructions:,} instructions per step"
        )


@dataclass(frozen=True)
class Increment:
    """What training so many channels of a layer adds to any plan at least.

    ``state_bytes`` is a part of the SRAM: the arena may grow besides. ``instructions`` are those of
    the weights' update: masks and errors of earlier layers may come besides.
    """

    state_bytes: int
    delta_bytes: int
    instructions: int = 0


@dataclass(frozen=True)
class Limits:
    """What a plan may cost at most; None where nothing is asked."""

    sram_bytes: int
    delta_bytes: int | None = None
    instructions: int | None = None
    round: Round = field(default_factory=Round)
    """That ``delta_bytes`` are of."""

    def allow(self, costs: Costs) -> bool:
        """Whether ``costs`` are within all limits."""
        return (
            costs.sram_bytes <= self.sram_bytes
            and (self.delta_bytes is None or costs.delta_bytes <= self.delta_bytes)
            and (self.instructions is None or costs.instructions <= self.instructions)
        )

    def __str__(self) -> str:
        """For people."""
        text = f"{self.sram_bytes:,} bytes of SRAM"
        if self.delta_bytes is not None:
            text += f", {self.delta_bytes:,} bytes of delta per round of {self.round}"
        if self.instructions is not None:
            text += f", {self.instructions:,} instructions per step"
        return text


@dataclass(frozen=True)
class DeltaBits:
    """Coded bits per value of a delta, by kind of tensor, as measured on a trained plan."""

    weight: float
    bias: float
    head: float

    def at_least(self, other: DeltaBits) -> DeltaBits:
        """The larger of both, kind by kind."""
        return DeltaBits(
            max(self.weight, other.weight), max(self.bias, other.bias), max(self.head, other.head)
        )

    def times(self, factor: float) -> DeltaBits:
        """All of them by ``factor``."""
        return DeltaBits(self.weight * factor, self.bias * factor, self.head * factor)


@dataclass(frozen=True)
class ProgramSizes:
    """What costs are made of: sizes of one compiled program, values of its delta by kind."""

    pool_bytes: int
    instructions: int
    weights: int
    biases: int
    head: int


def sizes_of(program: Program) -> ProgramSizes:
    """Sizes of ``program``."""
    values = {"weight": 0, "bias": 0, "head": 0}
    for segment in program.segments:
        values[_kind(program, segment.tensor)] += segment.values
    return ProgramSizes(
        pool_bytes=program.pool_bytes,
        instructions=estimated_instructions(program),
        weights=values["weight"],
        biases=values["bias"],
        head=values["head"],
    )


def weight_state_bytes(program: Program) -> dict[str, int]:
    """Bytes of the state of each layer whose weights ``program`` trains."""
    return {
        tensor.removesuffix(".weight"): size
        for tensor, size in program.tensor_state_bytes.items()
        if _kind(program, tensor) == "weight"
    }


def _kind(program: Program, tensor: str) -> str:
    layer, kind = tensor.rsplit(".", 1)
    return "head" if layer == program.graph.ending.name else kind


def rest_of(report: PlanReport) -> int:
    """SRAM of a linked image that no plan has a part in: ``total`` without arena and state."""
    sram = report.sram_bytes
    return sram.total - sram.arena - sram.state


class CostModel:
    """Costs of selections for one graph and one linked image. Each program is lowered once."""

    def __init__(
        self,
        graph: Graph,
        order: ChannelOrder,
        rest_bytes: int,
        bits: DeltaBits,
        state: State = "q8.8",
    ) -> None:
        """``rest_bytes`` is the SRAM beside arena, state and logits, measured (``rest_of``).

        It and ``bits`` may be set anew when better is known.
        """
        self.graph = graph
        self.order = order
        self.rest_bytes = rest_bytes
        self.bits = bits
        self.state = state
        self.measured: dict[Selection, Costs] = {}
        """What is known for certain; it goes before estimates."""
        self._more_per_instruction = 1.0
        self._known: dict[Selection, ProgramSizes] = {}
        self._added: dict[tuple[str, int], tuple[int, int, float]] = {}

    def of(self, selection: Selection) -> Costs:
        """Costs of ``selection``: measured where they were, else estimated."""
        return self.measured.get(selection) or self._costs(self._sizes(selection))

    def estimated(self, selection: Selection) -> Costs:
        """Estimated costs of ``selection``, whether or not better is known."""
        return self._costs(self._sizes(selection))

    def _sizes(self, selection: Selection) -> ProgramSizes:
        if selection not in self._known:
            self._known[selection] = sizes_of(lower(self.graph, self.plan(selection)))
        return self._known[selection]

    def plan(self, selection: Selection) -> Plan:
        """The plan that ``selection`` stands for."""
        return resolve(plan_spec(selection, self.order, state=self.state), self.graph)

    def _costs(self, sizes: ProgramSizes) -> Costs:
        bits = (
            sizes.weights * self.bits.weight
            + sizes.biases * self.bits.bias
            + sizes.head * self.bits.head
        )
        return Costs(
            sram_bytes=self.rest_bytes + sizes.pool_bytes,
            delta_bytes=math.ceil(bits / 8),
            instructions=self._instructions(sizes.instructions),
        )

    def _instructions(self, estimate: int) -> int:
        """All plans have the forward pass in common, and the head's part: of these the count for
        the head alone is taken, once it is known. What comes on top is scaled."""
        head = self.measured.get(Selection())
        if head is None:
            return estimate
        on_top = estimate - self._sizes(Selection()).instructions
        return head.instructions + round(on_top * self._more_per_instruction)

    def learn_instructions(self, selection: Selection) -> None:
        """Scales estimates so that that of ``selection``, which was measured, is right."""
        on_top = self._sizes(selection).instructions - self._sizes(Selection()).instructions
        counted = self.measured[selection].instructions - self.measured[Selection()].instructions
        if on_top > 0 and counted > 0:
            self._more_per_instruction = counted / on_top

    def increments(self, layers: Sequence[str]) -> dict[tuple[str, int], Increment]:
        """What each (layer, channels) adds, by layer and number of channels.

        It is read off programs that train all layers at once, one per ratio.
        """
        counts = {op.name: channel_counts(op) for op in self.graph.convolutions}
        if not self._added:
            for rank in range(max((len(c) for c in counts.values()), default=0)):
                chosen = {layer: c[min(rank, len(c) - 1)] for layer, c in counts.items()}
                program = lower(self.graph, self.plan(Selection(0, tuple(chosen.items()))))
                states = weight_state_bytes(program)
                for step in program.steps:
                    layer = step.op.name
                    if not step.kernel.endswith("_weight_update"):
                        continue
                    segment = program.segment_of(f"{layer}.weight")
                    assert segment is not None
                    update = instructions_of(program, step)
                    self._added[layer, chosen[layer]] = (states[layer], segment.values, update)
        return {
            (layer, count): Increment(
                state,
                int(values * self.bits.weight / 8),
                int(update * self._more_per_instruction),
            )
            for (layer, count), (state, values, update) in self._added.items()
            if layer in layers
        }


def measured_delta_bits(
    program: Program, delta: NDArray[np.int32], coded_bytes: CodedBytes
) -> DeltaBits:
    """Bits per value of ``delta``, the change of ``program``'s values in plan order, by kind.

    A kind that the program doesn't train is taken to be as costly as the costliest that it does.
    """
    parts: dict[str, list[NDArray[np.int32]]] = {}
    for segment in program.segments:
        part = delta[segment.first_value : segment.first_value + segment.values]
        parts.setdefault(_kind(program, segment.tensor), []).append(part)
    bits = {}
    for kind, values in parts.items():
        together = np.concatenate(values)
        bits[kind] = 8 * coded_bytes(together) / together.size
    worst = max(bits.values())
    return DeltaBits(**{kind: bits.get(kind, worst) for kind in ("weight", "bias", "head")})
