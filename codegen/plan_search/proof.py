"""What plans cost in fact: linked for the board, run, trained for rounds, their deltas coded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.compile import build_host_engine, compile_graph
from codegen.errors import BudgetError
from codegen.firmware.boards import Board
from codegen.firmware.bundle import Bundle, PlanReport
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import Toolchain
from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
from codegen.plan_search.costs import CodedBytes, Costs, DeltaBits, Round, measured_delta_bits
from codegen.plan_search.samples import Samples
from codegen.plan_search.training import LEARNING_RATE_ONE, Schedule
from codegen.program.lowering import lower
from codegen.program.plans import Plan

ROUNDS = 6
"""Rounds on different samples whose deltas are measured."""


_UNLIMITED = 1 << 30


class SramExceeded(BudgetError):
    """A plan needs more SRAM than there is on the board; the message is how much."""


@dataclass(frozen=True)
class Bench:
    """What images are built with, and what measures them: link and simulator are not codegen's."""

    protocol_cddl: Path
    toolchain: Toolchain
    coded_bytes: CodedBytes
    step_instructions: Callable[[Path], int]
    """Instructions of a training step of the only plan of the bundle in a folder."""


@dataclass(frozen=True, eq=False)
class Linked:
    """A plan's image as it was linked and run, and its deltas as they were coded.

    ``rounds`` has the bytes of the delta of each round that was measured. ``costs`` take the
    largest, and as much more as they differ by: devices have other samples yet. ``largest`` is
    that delta, in plan order.
    """

    report: PlanReport
    costs: Costs
    rounds: tuple[int, ...]
    largest: NDArray[np.int32]


@dataclass(frozen=True)
class Proof:
    """Links, runs and trains plans of ``graph``, whose weights are the factory's, for one board.

    A plan's image is the one that ``tinyfleet compile`` makes of it alone.
    """

    graph: Graph
    board: Board
    training: Samples
    schedule: Schedule
    round: Round
    bench: Bench
    tell: Progress
    _known: dict[str, Linked] = field(default_factory=dict)

    def of(self, plan: Plan) -> Linked:
        """What ``plan`` costs, whether or not it is within the limits. Each is measured once.

        Raises SramExceeded for a plan that the board's SRAM can't hold, and what compiling raises.
        """
        if plan.id not in self._known:
            self._known[plan.id] = self._measure(plan)
        return self._known[plan.id]

    def _measure(self, plan: Plan) -> Linked:
        with tempfile.TemporaryDirectory(prefix="tinyfleet-plan-") as folder:
            bundle = self._compiled(plan, self.board.sram.bytes, Path(folder) / "bundle")
            library = build_host_engine(bundle, Path(folder) / "engine.so")
            deltas = list(self._deltas(HostEngine(library, plan.id)))
            instructions = self.bench.step_instructions(bundle.path)
        (report,) = bundle.report.plans
        rounds = tuple(map(self.bench.coded_bytes, deltas))
        delta_bytes = max(rounds) + (max(rounds) - min(rounds))
        costs = Costs(report.sram_bytes.total, delta_bytes, instructions)
        return Linked(report, costs, rounds, deltas[int(np.argmax(rounds))])

    def _compiled(self, plan: Plan, sram_limit_bytes: int, out: Path) -> Bundle:
        board = self.board.model_copy(update={"sram_limit_bytes": sram_limit_bytes})
        try:
            return compile_graph(
                self.graph,
                board,
                [plan],
                onnx_sha256="00" * 32,
                out=out,
                protocol_cddl=self.bench.protocol_cddl,
                toolchain=self.bench.toolchain,
                progress=self.tell,
            )
        except BudgetError as error:
            if sram_limit_bytes == _UNLIMITED:
                raise
            # An image that no memory limits tells how much it needs; if flash is short, it can't.
            (report,) = self._compiled(plan, _UNLIMITED, out).report.plans
            raise SramExceeded(
                f"{report.sram_bytes.total:,} bytes of SRAM, of which {self.board.name} has "
                f"{self.board.sram.bytes:,}"
            ) from error

    def _deltas(self, engine: HostEngine) -> Iterator[NDArray[np.int32]]:
        """The delta of each of the rounds, from the factory weights on."""
        for number in range(ROUNDS):
            self.tell("training rounds", number, ROUNDS)
            engine.load()
            train_round(engine, self.training, self.round, self.schedule, number)
            yield engine.delta()
        self.tell("training rounds", ROUNDS, ROUNDS)

    def delta_bits(self, plan: Plan) -> DeltaBits:
        """Bits per value of ``plan``'s coded delta of a round; no image is linked."""
        program = lower(self.graph, plan)
        with tempfile.TemporaryDirectory(prefix="tinyfleet-plan-") as folder:
            library = build_host_engine((self.graph, [program]), Path(folder) / "engine.so")
            delta = next(self._deltas(HostEngine(library, plan.id)))
        return measured_delta_bits(program, delta, self.bench.coded_bytes)

    def bits_of(self, plan: Plan) -> DeltaBits:
        """Bits per value, by kind, with which the values of ``plan`` make what its delta costs."""
        linked, program = self.of(plan), lower(self.graph, plan)
        bits = measured_delta_bits(program, linked.largest, self.bench.coded_bytes)
        return bits.times(linked.costs.delta_bytes / max(linked.rounds))


def train_round(
    engine: HostEngine, training: Samples, of: Round, schedule: Schedule, number: int = 0
) -> None:
    """Trains ``engine`` at the full learning rate on samples of ``training``, drawn by ``number``.

    The order of each epoch is drawn, as on a device. Where there are fewer than a round has, they
    are repeated.
    """
    rate = round(schedule.learning_rate * LEARNING_RATE_ONE)
    rng = np.random.default_rng([schedule.seed, len(training), number])
    drawn = np.resize(rng.permutation(len(training)), of.samples)
    for _ in range(of.epochs):
        for index in rng.permutation(drawn).tolist():
            label = int(training.labels[index])
            engine.train_step(training.codes[index], label, rate, schedule.seed + number)
