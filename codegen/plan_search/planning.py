"""From a model and labelled samples to update plans: what `tinyfleet plan` does.

Measure the image, analyse contributions, search, then check what was assumed: the chosen plan is
linked for the board, trained, and its delta coded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from codegen import blob
from codegen.boards import Board
from codegen.bundle import PlanReport
from codegen.compile import compile_graph
from codegen.errors import BudgetError, PlanError
from codegen.host_engine import HostEngine
from codegen.ir import Graph, inputs_of
from codegen.lowering import lower
from codegen.plan_search.candidates import (
    ChannelChoice,
    ChannelOrder,
    Selection,
    channel_counts,
    order_by,
    order_by_norm,
    plan_spec,
)
from codegen.plan_search.contributions import Contributions, Journal, Method
from codegen.plan_search.costs import (
    CodedBytes,
    CostModel,
    Costs,
    DeltaBits,
    Limits,
    measured_delta_bits,
    rest_of,
)
from codegen.plan_search.finetune import (
    Trial,
    candidates,
    finetune_contributions,
    measure,
)
from codegen.plan_search.fisher import channel_traces, fisher_contributions
from codegen.plan_search.samples import Samples, hold_out
from codegen.plan_search.search import Found, search
from codegen.plan_search.training import (
    LEARNING_RATE_ONE,
    Features,
    Progress,
    Schedule,
    Score,
    cut_for,
    engines,
    with_trained_head,
)
from codegen.plans import Plan, PlanSpec, State, default_plans, resolve
from codegen.program import Program
from codegen.subgraph import cut_graph
from codegen.toolchain import Toolchain
from device_runtime import engine_sources

HEAD_EPOCHS = 10
ROUND_SAMPLES = 64
"""Samples that a device trains on in the round whose delta is measured."""

FISHER_SAMPLES = 128
FRONT_POINTS = 8
FRONT_COSTED = 60
CORRECTIONS = 6
CHOSEN = "best"
ACCUMULATIONS = (8, 32)
MOMENTUM = 0.9


@dataclass(frozen=True)
class Settings:
    """What is asked for. Limits of None are the board's, or none at all."""

    method: Method = "finetune"
    channel_choice: ChannelChoice = "norm"
    state: State = "q8.8"
    sram_bytes: int | None = None
    uplink_bytes: int | None = None
    macs: int | None = None
    """Multiply-accumulates of a training step."""
    last: int | None = None
    """Layers analysed, counted from the end; None for all."""
    schedule: Schedule = field(default_factory=Schedule)
    repeats: int = 1


@dataclass(frozen=True)
class Proposal:
    """A plan that was found. ``predicted`` is its summed contribution, in the method's unit."""

    name: str
    spec: PlanSpec
    plan: Plan
    predicted: float
    optimal: bool
    costs: Costs
    measured: Score


@dataclass(frozen=True)
class Variant:
    """The chosen plan with another option: what it would cost, or why it can't be."""

    option: str
    costs: Costs | None
    refusal: str = ""


@dataclass(frozen=True)
class PlanningResult:
    """Everything that the command shows. ``proposals`` by SRAM, the chosen one is ``best``."""

    board: str
    limits: Limits
    contributions: Contributions
    head_only: Score
    proposals: tuple[Proposal, ...]
    linked: PlanReport
    delta_bytes: int
    bits: DeltaBits
    variants: tuple[Variant, ...]

    @property
    def best(self) -> Proposal:
        """The plan of highest summed contribution within the limits."""
        return next(p for p in self.proposals if p.name == CHOSEN)

    def plan_file(self) -> dict[str, Any]:
        """Content of a file of several plans (docs/specification/bundle.md)."""
        return {
            "plans": {
                p.name: p.spec.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
                for p in self.proposals
            }
        }


def find_plans(
    graph: Graph,
    board: Board,
    samples: Samples,
    settings: Settings,
    *,
    protocol_cddl: Path,
    toolchain: Toolchain,
    coded_bytes: CodedBytes,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> PlanningResult:
    """Finds update plans for ``graph`` on ``board`` that learn most from ``samples``.

    ``coded_bytes`` tells what values of a delta take on the link. ``journal`` is a file that
    keeps finished measurements; a run with the same inputs goes on from it.

    Raises BudgetError where not even the head alone can be trained within the limits, PlanError
    for settings that can't be, and what compiling raises.
    """
    return _Planning(
        graph, board, samples, settings, protocol_cddl, toolchain, coded_bytes, journal, progress
    ).run()


class _Planning:
    def __init__(
        self,
        graph: Graph,
        board: Board,
        samples: Samples,
        settings: Settings,
        protocol_cddl: Path,
        toolchain: Toolchain,
        coded_bytes: CodedBytes,
        journal: Path | None,
        progress: Progress | None,
    ) -> None:
        layers = len(graph.convolutions)
        self.last = layers if settings.last is None else settings.last
        if not 0 <= self.last <= layers:
            raise PlanError(
                f"the last {self.last} layers are to be analysed, the model has {layers} "
                "convolutions"
            )
        if graph.head.loss != "cross-entropy":
            raise PlanError(
                f"model {graph.name} reconstructs its input; plans are searched for classifiers "
                "only, by their accuracy. Write a plan by hand, or take the default ones"
            )
        self.board = board
        self.settings = settings
        self.protocol_cddl = protocol_cddl
        self.toolchain = toolchain
        self.coded_bytes = coded_bytes
        self.tell: Progress = progress or (lambda stage, done, of: None)
        self.journal = Journal(journal, _identity(graph, samples, settings))
        self.training, self.held_out = hold_out(samples, settings.schedule.seed)
        self.graph = self._with_warm_head(graph)

    def _with_warm_head(self, graph: Graph) -> Graph:
        schedule = dataclasses.replace(self.settings.schedule, epochs=HEAD_EPOCHS)
        head = graph.head
        if "head" not in self.journal:
            warm = with_trained_head(graph, self.training, schedule, self.tell).head
            self.journal.add("head", [warm.weight.tolist(), warm.bias.tolist()])
        weight, bias = self.journal["head"]
        trained = dataclasses.replace(
            head,
            weight=np.array(weight, head.weight.dtype),
            bias=np.array(bias, head.bias.dtype),
        )
        return dataclasses.replace(graph, ops=(*graph.ops[:-1], trained))

    def run(self) -> PlanningResult:
        graph, settings = self.graph, self.settings
        limits = Limits(
            sram_bytes=settings.sram_bytes or self.board.sram_limit_bytes,
            delta_bytes=settings.uplink_bytes,
            macs=settings.macs,
        )
        rest = rest_of(self._link(resolve(PlanSpec(name="head-only"), graph)))
        traces = self._traces()
        order = self._order(traces)
        model = CostModel(graph, order, rest, self._reference_bits(), settings.state)
        self._check_head(model.of(Selection()), limits)
        trial = Trial(
            graph,
            order,
            self.training,
            self.held_out,
            settings.schedule,
            settings.state,
            settings.repeats,
        )
        if settings.method == "fisher":
            contributions = self._within(fisher_contributions(graph, traces, order), model, limits)
        else:
            contributions = self._finetuned(trial, model, limits)
        found, linked, delta_bytes = self._checked(contributions, model, limits)
        selected = {CHOSEN: found, **self._front(contributions, model, limits, found)}
        scores = measure(
            trial,
            [Selection(), *(item.selection for item in selected.values())],
            self.journal,
            self.tell,
        )
        proposals = [
            Proposal(
                name=name,
                spec=plan_spec(
                    item.selection,
                    order,
                    name=name,
                    state=settings.state,
                    choice=settings.channel_choice,
                ),
                plan=model.plan(item.selection),
                predicted=item.value,
                optimal=item.optimal,
                costs=model.of(item.selection),
                measured=scores[item.selection],
            )
            for name, item in selected.items()
        ]
        return PlanningResult(
            board=self.board.name,
            limits=limits,
            contributions=contributions,
            head_only=scores[Selection()],
            proposals=tuple(sorted(proposals, key=lambda item: item.costs.sram_bytes)),
            linked=linked,
            delta_bytes=delta_bytes,
            bits=model.bits,
            variants=tuple(self._variants(model, found.selection)),
        )

    # What costs rest on: the image and the coded delta, measured.

    def _link(self, plan: Plan) -> PlanReport:
        """The linked image's report for ``plan``, whether or not it is within the limits."""
        board = self.board.model_copy(update={"sram_limit_bytes": self.board.sram.bytes})
        with tempfile.TemporaryDirectory(prefix="tinyfleet-plan-") as folder:
            bundle = compile_graph(
                self.graph,
                board,
                [plan],
                onnx_sha256="00" * 32,
                out=Path(folder) / "bundle",
                protocol_cddl=self.protocol_cddl,
                toolchain=self.toolchain,
                progress=self.tell,
            )
        return bundle.report.plans[0]

    def _round_delta(self, plan: Plan) -> tuple[Program, NDArray[np.int32]]:
        """``plan``'s program and the delta of a round on ``ROUND_SAMPLES`` samples."""
        cut = cut_for(self.graph, plan)
        some = self.training.take(np.arange(min(ROUND_SAMPLES, len(self.training))))
        features = Features(self.graph, some, [cut], self.tell).at(cut)
        with engines(self.graph, cut, [plan]) as (engine,):
            train_round(engine, features, self.settings.schedule)
            return lower(cut_graph(self.graph, cut), plan), engine.delta()

    def _reference_bits(self) -> DeltaBits:
        """Bits per value of the delta of a plan of middle size."""
        if "delta bits" not in self.journal:
            plans = default_plans(self.graph)
            program, delta = self._round_delta(plans[min(1, len(plans) - 1)])
            bits = measured_delta_bits(program, delta, self.coded_bytes)
            self.journal.add("delta bits", dataclasses.asdict(bits))
        return DeltaBits(**self.journal["delta bits"])

    def _check_head(self, costs: Costs, limits: Limits) -> None:
        if limits.allow(costs):
            return
        asked = f"{limits.sram_bytes:,} bytes of SRAM"
        if limits.delta_bytes is not None:
            asked += f", {limits.delta_bytes:,} bytes of delta per round"
        if limits.macs is not None:
            asked += f", {limits.macs:,} multiply-accumulates per step"
        raise BudgetError(
            f"no plan fits {asked} on board {self.board.name}: the head alone needs "
            f"{costs.sram_bytes:,} bytes of SRAM, about {costs.delta_bytes:,} of delta and "
            f"{costs.macs:,} multiply-accumulates; use a smaller model, a larger board, or raise "
            "the limits"
        )

    # Contributions.

    def _traces(self) -> dict[str, NDArray[np.float64]]:
        """Squared gradients by channel, where the method or the choice of channels needs them."""
        if self.settings.method != "fisher" and self.settings.channel_choice != "contribution":
            return {}
        some = self.training.take(np.arange(min(FISHER_SAMPLES, len(self.training))))
        rate = self.settings.schedule.learning_rate
        return channel_traces(self.graph, some, rate, self.journal, self.tell)

    def _order(self, traces: Mapping[str, NDArray[np.float64]]) -> ChannelOrder:
        if self.settings.channel_choice == "norm":
            return order_by_norm(self.graph)
        return {op.name: order_by(traces[f"{op.name}.weight"]) for op in self.graph.convolutions}

    def _deepest(self, model: CostModel, limits: Limits) -> int:
        """The most biases, of the layers analysed, that the limits allow."""
        depth = 0
        while depth < self.last and limits.allow(model.of(Selection(depth + 1))):
            depth += 1
        return depth

    def _within(
        self, contributions: Contributions, model: CostModel, limits: Limits
    ) -> Contributions:
        layers = [op.name for op in self.graph.convolutions]
        analysed = layers[len(layers) - self.last :]
        return dataclasses.replace(
            contributions,
            biases=contributions.biases[: self._deepest(model, limits) + 1],
            weights={layer: contributions.weights[layer] for layer in analysed},
        )

    def _finetuned(self, trial: Trial, model: CostModel, limits: Limits) -> Contributions:
        """Only what can be part of a plan is trained: what alone is too much is left out."""
        depth = self._deepest(model, limits)
        possible = [
            selection
            for selection in candidates(self.graph, depth)
            if not selection.channels or self._fits_alone(selection.channels[0], model, limits)
        ]
        scores = measure(trial, possible, self.journal, self.tell)
        return finetune_contributions(self.graph, scores)

    def _fits_alone(self, pair: tuple[str, int], model: CostModel, limits: Limits) -> bool:
        layer, count = pair
        op = next(op for op in self.graph.convolutions if op.name == layer)
        fewest = channel_counts(op)[0]
        costs = model.of(Selection(0, ((layer, fewest),)))
        added = model.increments([layer])
        more = added[layer, count].state_bytes - added[layer, fewest].state_bytes
        return limits.allow(dataclasses.replace(costs, sram_bytes=costs.sram_bytes + more))

    # Search, and what follows from it.

    def _checked(
        self, contributions: Contributions, model: CostModel, limits: Limits
    ) -> tuple[Found, PlanReport, int]:
        """The best plan, its linked image and its measured delta, all within the limits.

        Where image or delta turn out larger than predicted, the model learns it.
        """
        layers = [*contributions.weights]
        for _ in range(CORRECTIONS):
            self.tell("searching", 0, 1)
            found = search(contributions, model.of, model.increments(layers), limits)
            assert found is not None, "the head alone was checked"
            self.tell("searching", 1, 1)
            linked = self._link(model.plan(found.selection))
            program, delta = self._round_delta(model.plan(found.selection))
            delta_bytes = self.coded_bytes(delta)
            costs = model.of(found.selection)
            if linked.sram_bytes.total > limits.sram_bytes:
                model.rest_bytes += linked.sram_bytes.total - costs.sram_bytes
            elif limits.delta_bytes is not None and delta_bytes > limits.delta_bytes:
                model.bits = model.bits.at_least(
                    measured_delta_bits(program, delta, self.coded_bytes)
                )
                short = delta_bytes / model.of(found.selection).delta_bytes
                model.bits = model.bits.times(max(1.0, short))
            else:
                return found, linked, delta_bytes
            self._check_head(model.of(Selection()), limits)
        raise BudgetError(
            f"the best plans for {limits.sram_bytes:,} bytes of SRAM need more once linked "
            f"({linked.sram_bytes.total:,}), or their deltas once trained ({delta_bytes:,}); ask "
            "for a few percent less"
        )

    def _front(
        self, contributions: Contributions, model: CostModel, limits: Limits, best: Found
    ) -> dict[str, Found]:
        """The best plans for less SRAM: name → plan, each better than all smaller ones."""
        least = model.of(Selection()).sram_bytes
        increments = model.increments([*contributions.weights])
        front: dict[str, Found] = {}
        value = contributions.biases[0]
        for point in range(1, FRONT_POINTS):
            room = least + (best.costs.sram_bytes - least) * point // FRONT_POINTS
            self.tell("searching smaller plans", point, FRONT_POINTS)
            tighter = dataclasses.replace(limits, sram_bytes=room)
            found = search(contributions, model.of, increments, tighter, FRONT_COSTED)
            if found is not None and value < found.value < best.value:
                front[f"sram-{-(-found.costs.sram_bytes // 1024)}k"] = found
                value = found.value
        self.tell("searching smaller plans", FRONT_POINTS, FRONT_POINTS)
        return front

    def _variants(self, model: CostModel, chosen: Selection) -> Iterator[Variant]:
        spec = plan_spec(chosen, model.order, state=model.state)
        changes: list[dict[str, Any]] = [
            {"state": state} for state in get_args(State) if state != model.state
        ]
        changes += [{"accumulate": count} for count in ACCUMULATIONS]
        changes.append({"momentum": MOMENTUM})
        for change in changes:
            (option,) = (f"{key} {value}" for key, value in change.items())
            try:
                plan = resolve(spec.model_copy(update=change), self.graph)
            except PlanError as error:
                yield Variant(option, None, str(error))
            else:
                yield Variant(option, model.of_plan(plan))


def train_round(engine: HostEngine, samples: Samples, schedule: Schedule) -> None:
    """One epoch over ``samples`` at the full learning rate, as a device does in a round."""
    rate = round(schedule.learning_rate * LEARNING_RATE_ONE)
    for codes, label in zip(samples.codes, samples.labels.tolist(), strict=True):
        engine.train_step(codes, label, rate, schedule.seed)


def _identity(graph: Graph, samples: Samples, settings: Settings) -> dict[str, Any]:
    """What measurements depend on; limits don't belong to it, they can be changed and resumed."""
    model = hashlib.sha256(blob.pack(graph))
    for op in graph.ops:
        model.update(repr((op.name, type(op).__name__, inputs_of(op))).encode())
    for tensor in graph.tensors.values():
        model.update(repr(tensor).encode())
    arithmetic = hashlib.sha256()
    for path in sorted(engine_sources()):
        arithmetic.update(path.read_bytes())
    return {
        "arithmetic": arithmetic.hexdigest(),
        "model": model.hexdigest(),
        "samples": samples.digest,
        "channels": settings.channel_choice,
        "state": settings.state,
        "schedule": dataclasses.asdict(settings.schedule),
        "repeats": settings.repeats,
    }
