"""What plans cost in fact: linked for the board, run, trained for a round, their deltas coded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.compile import compile_graph
from codegen.firmware.boards import Board
from codegen.firmware.bundle import PlanReport
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import Toolchain
from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
from codegen.plan_search.candidates import Selection
from codegen.plan_search.costs import (
    CodedBytes,
    CostModel,
    Costs,
    DeltaBits,
    Limits,
    measured_delta_bits,
)
from codegen.plan_search.samples import Samples
from codegen.plan_search.training import LEARNING_RATE_ONE, Features, Schedule, cut_for, engines
from codegen.program.lowering import lower
from codegen.program.plans import Plan
from codegen.program.steps import Program
from codegen.program.subgraph import cut_graph

ROUND_SAMPLES = 64
"""Samples that a device trains on in the round whose delta is measured."""


@dataclass(frozen=True)
class Bench:
    """What images are built with, and what measures them: link and simulator are not codegen's."""

    protocol_cddl: Path
    toolchain: Toolchain
    coded_bytes: CodedBytes
    step_instructions: Callable[[Path], int]
    """Instructions of a training step of the first plan of the bundle in a folder."""


@dataclass(frozen=True)
class Linked:
    """A plan's image as it was linked and run, and its delta as it was coded."""

    report: PlanReport
    costs: Costs


@dataclass(frozen=True)
class Proof:
    """Links, runs and trains plans of one graph for one board."""

    graph: Graph
    board: Board
    training: Samples
    schedule: Schedule
    bench: Bench
    tell: Progress

    def link(self, plan: Plan) -> tuple[PlanReport, int]:
        """The linked image's report for ``plan``, whether or not it is within the limits.

        And the instructions of a training step.
        """
        board = self.board.model_copy(update={"sram_limit_bytes": self.board.sram.bytes})
        with tempfile.TemporaryDirectory(prefix="tinyfleet-plan-") as folder:
            bundle = compile_graph(
                self.graph,
                board,
                [plan],
                onnx_sha256="00" * 32,
                out=Path(folder) / "bundle",
                protocol_cddl=self.bench.protocol_cddl,
                toolchain=self.bench.toolchain,
                progress=self.tell,
            )
            return bundle.report.plans[0], self.bench.step_instructions(bundle.path)

    def _round_delta(self, plan: Plan) -> tuple[Program, NDArray[np.int32]]:
        """``plan``'s program and the delta of a round on ``ROUND_SAMPLES`` samples."""
        cut = cut_for(self.graph, plan)
        some = self.training.take(np.arange(min(ROUND_SAMPLES, len(self.training))))
        features = Features(self.graph, some, [cut], self.tell).at(cut)
        with engines(self.graph, cut, [plan]) as (engine,):
            train_round(engine, features, self.schedule)
            return lower(cut_graph(self.graph, cut), plan), engine.delta()

    def delta_bits(self, plan: Plan) -> DeltaBits:
        """Bits per value of ``plan``'s coded delta of a round."""
        return measured_delta_bits(*self._round_delta(plan), self.bench.coded_bytes)

    def within(self, selection: Selection, model: CostModel, limits: Limits) -> Linked | Costs:
        """The image of ``selection``; its costs, which ``model`` learns, if they are too high."""
        plan, predicted = model.plan(selection), model.of(selection)
        report, instructions = self.link(plan)
        program, delta = self._round_delta(plan)
        delta_bytes = self.bench.coded_bytes(delta)
        costs = Costs(report.sram_bytes.total, delta_bytes, instructions)
        if limits.allow(costs):
            return Linked(report, costs)
        if costs.sram_bytes > limits.sram_bytes:
            model.rest_bytes += costs.sram_bytes - predicted.sram_bytes
        if limits.delta_bytes is not None and delta_bytes > limits.delta_bytes:
            bits = measured_delta_bits(program, delta, self.bench.coded_bytes)
            model.bits = model.bits.at_least(bits)
            short = delta_bytes / model.of(selection).delta_bytes
            model.bits = model.bits.times(max(1.0, short))
        if limits.instructions is not None and instructions > limits.instructions:
            model.rest_instructions += instructions - predicted.instructions
        return costs


def train_round(engine: HostEngine, samples: Samples, schedule: Schedule) -> None:
    """One epoch over ``samples`` at the full learning rate, as a device does in a round."""
    rate = round(schedule.learning_rate * LEARNING_RATE_ONE)
    for codes, label in zip(samples.codes, samples.labels.tolist(), strict=True):
        engine.train_step(codes, label, rate, schedule.seed)
