"""From a model and labelled samples to update plans: what `tinyfleet plan` does.

Measure the image, analyse contributions, search, then check what was assumed: plans are linked for
the board, run, and their deltas coded. That contributions add up is an assumption too: the best sum
is trained beside other plans, and the one that measures best is chosen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from codegen.errors import BudgetError, PlanError
from codegen.firmware.boards import Board
from codegen.firmware.model_digest import model_digest
from codegen.graph.ir import Graph
from codegen.host_toolchain import Progress
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
    CostModel,
    Costs,
    DeltaBits,
    Limits,
    rest_of,
)
from codegen.plan_search.finetune import (
    Trial,
    candidates,
    finetune_contributions,
    measure,
)
from codegen.plan_search.fisher import channel_traces, fisher_contributions
from codegen.plan_search.proof import Bench, Linked, Proof
from codegen.plan_search.samples import Samples, hold_out
from codegen.plan_search.search import Found, search
from codegen.plan_search.training import (
    Schedule,
    Score,
    with_trained_head,
)
from codegen.program import blob
from codegen.program.plans import Plan, PlanSpec, State, default_plans, resolve
from device_runtime import engine_sources

HEAD_EPOCHS = 10
FISHER_SAMPLES = 128
FRONT_POINTS = 8
FRONT_COSTED = 60
CORRECTIONS = 6
CHOSEN = "best"
HIGHEST_SUM = "highest-sum"
HEAD_ONLY = "head-only"
BIASES_ONLY = "biases-only"
LEFT_OUT = 3
"""Layers without each of which another plan is searched, those that promise most first."""

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
    instructions: int | None = None
    """Of a training step."""
    last: int | None = None
    """Layers analysed, counted from the end; None for all."""
    schedule: Schedule = field(default_factory=Schedule)
    repeats: int = 1


@dataclass(frozen=True)
class Proposal:
    """A plan that was found. ``predicted`` is its summed contribution, in the method's unit.

    ``optimal``: no other plan within the limits that it was searched for has a higher sum. The
    costs of the chosen plan are measured, those of the others predicted.
    """

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
    """Everything that the command shows. ``proposals`` by SRAM; ``linked`` is plan ``best``."""

    board: str
    limits: Limits
    contributions: Contributions
    head_only: Score
    proposals: tuple[Proposal, ...]
    linked: Linked
    bits: DeltaBits
    variants: tuple[Variant, ...]

    @property
    def best(self) -> Proposal:
        """The plan that measured best of those within the limits."""
        return next(p for p in self.proposals if p.name == CHOSEN)

    @property
    def highest_sum(self) -> Proposal:
        """The plan of highest summed contribution within the limits; it may be the best as well."""
        return next((p for p in self.proposals if p.name == HIGHEST_SUM), self.best)

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
    bench: Bench,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> PlanningResult:
    """Finds update plans for ``graph`` on ``board`` that learn most from ``samples``.

    ``journal`` is a file that keeps finished measurements; a run with the same inputs goes on
    from it.

    Raises BudgetError where not even the head alone can be trained within the limits, PlanError
    for settings that can't be, and what compiling and ``bench`` raise.
    """
    tell: Progress = progress or (lambda stage, done, of: None)
    return _Planning(graph, board, samples, settings, bench, journal, tell).run()


class _Planning:
    def __init__(
        self,
        graph: Graph,
        board: Board,
        samples: Samples,
        settings: Settings,
        bench: Bench,
        journal: Path | None,
        tell: Progress,
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
                f"model {graph.name} has the loss {graph.head.loss}; plans are searched for "
                "classifiers only, by their accuracy. Write a plan by hand, or take the default "
                "ones"
            )
        self.board = board
        self.settings = settings
        self.tell = tell
        self.journal = Journal(journal, _identity(graph, samples, settings))
        self.training, self.held_out = hold_out(samples, settings.schedule.seed)
        self.graph = self._with_warm_head(graph)
        self.proof = Proof(self.graph, board, self.training, settings.schedule, bench, tell)

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
        most = self.board.sram_limit_bytes
        limits = Limits(
            sram_bytes=min(settings.sram_bytes or most, most),
            delta_bytes=settings.uplink_bytes,
            instructions=settings.instructions,
        )
        report, instructions = self.proof.link(resolve(PlanSpec(name=HEAD_ONLY), graph))
        traces = self._traces()
        order = self._order(traces)
        model = CostModel(graph, order, rest_of(report), self._reference_bits(), settings.state)
        # Plans have the forward pass in common, which is most of it for the head alone.
        model.rest_instructions = instructions - model.of(Selection()).instructions
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
        found, linked = self._checked(contributions, model, limits)
        selected = _distinct(
            {
                HIGHEST_SUM: found,
                **self._front(contributions, model, limits, found),
                **self._others(contributions, model, limits, found),
            }
        )
        finalists = [item.selection for item in selected.values()]
        scores = measure(trial, finalists, self.journal, self.tell)
        chosen, linked = self._best_measured(selected, scores, linked, model, limits)
        selected = {CHOSEN if name == chosen else name: item for name, item in selected.items()}
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
                costs=linked.costs if name == CHOSEN else model.of(item.selection),
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
            bits=model.bits,
            variants=tuple(self._variants(model, selected[CHOSEN].selection)),
        )

    def _reference_bits(self) -> DeltaBits:
        """Bits per value of the delta of a plan of middle size."""
        if "delta bits" not in self.journal:
            plans = default_plans(self.graph)
            middle = dataclasses.replace(plans[min(1, len(plans) - 1)], state=self.settings.state)
            bits = self.proof.delta_bits(middle)
            self.journal.add("delta bits", dataclasses.asdict(bits))
        return DeltaBits(**self.journal["delta bits"])

    def _check_head(self, costs: Costs, limits: Limits) -> None:
        if limits.allow(costs):
            return
        raise BudgetError(
            f"no plan fits {limits} on board {self.board.name}: the head alone needs {costs}; "
            "use a smaller model, a larger board, or raise the limits"
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
        least, more = added[layer, fewest], added[layer, count]
        return limits.allow(
            Costs(
                costs.sram_bytes + more.state_bytes - least.state_bytes,
                costs.delta_bytes + more.delta_bytes - least.delta_bytes,
                costs.instructions + more.instructions - least.instructions,
            )
        )

    # Search, and what follows from it.

    def _checked(
        self, contributions: Contributions, model: CostModel, limits: Limits
    ) -> tuple[Found, Linked]:
        """The plan of highest sum, linked, run and trained, all within the limits.

        Where it turns out to cost more than predicted, the model learns it.
        """
        layers = [*contributions.weights]
        for _ in range(CORRECTIONS):
            self.tell("searching", 0, 1)
            found = search(contributions, model.of, model.increments(layers), limits)
            assert found is not None, "the head alone was checked"
            self.tell("searching", 1, 1)
            linked = self.proof.within(found.selection, model, limits)
            if isinstance(linked, Linked):
                return found, linked
            self._check_head(model.of(Selection()), limits)
        raise BudgetError(
            f"the best plans for {limits} take more once linked, run and trained: {linked}; "
            "ask for a few percent less"
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

    def _others(
        self, contributions: Contributions, model: CostModel, limits: Limits, best: Found
    ) -> dict[str, Found]:
        """Plans of other kinds that may do better than ``best``, if gains don't add up.

        The head alone, the biases of ``best`` alone; and the best plans without a layer each, for
        those that promise most.
        """
        depths = {HEAD_ONLY: 0, BIASES_ONLY: best.selection.depth}
        others = {
            name: Found(
                Selection(depth), contributions.biases[depth], model.of(Selection(depth)), False
            )
            for name, depth in depths.items()
        }
        gains = {
            layer: contributions.weights[layer][count] for layer, count in best.selection.channels
        }
        ranked = sorted(gains, key=lambda name: -gains[name])[:LEFT_OUT]
        for done, layer in enumerate(ranked):
            self.tell("searching other plans", done, len(ranked))
            left = {name: of for name, of in contributions.weights.items() if name != layer}
            without = dataclasses.replace(contributions, weights=left)
            found = search(without, model.of, model.increments([*left]), limits, FRONT_COSTED)
            if found is not None:
                name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"without-{layer}")[:64]
                others[name] = found
        self.tell("searching other plans", len(ranked), len(ranked))
        return others

    def _best_measured(
        self,
        selected: Mapping[str, Found],
        scores: Mapping[Selection, Score],
        highest_sum: Linked,
        model: CostModel,
        limits: Limits,
    ) -> tuple[str, Linked]:
        """Name and image of the plan that measures best; of equals the one of higher sum."""
        ranked = sorted(
            selected,
            key=lambda name: (scores[selected[name].selection].loss, -selected[name].value),
        )
        for name in ranked:
            if name == HIGHEST_SUM:
                break
            linked = self.proof.within(selected[name].selection, model, limits)
            if isinstance(linked, Linked):
                return name, linked
        return HIGHEST_SUM, highest_sum

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


def _distinct(found: Mapping[str, Found]) -> dict[str, Found]:
    """``found`` without what has been found under another name before."""
    by_selection: dict[Selection, str] = {}
    for name, item in found.items():
        by_selection.setdefault(item.selection, name)
    return {name: found[name] for name in by_selection.values()}


def _identity(graph: Graph, samples: Samples, settings: Settings) -> dict[str, Any]:
    """What measurements depend on; limits don't belong to it, they can be changed and resumed."""
    weights = blob.all_published(graph)
    arithmetic = hashlib.sha256()
    for path in sorted(engine_sources()):
        arithmetic.update(path.read_bytes())
    return {
        "arithmetic": arithmetic.hexdigest(),
        "model": model_digest(graph, weights),
        "weights": hashlib.sha256(weights.published.pack()).hexdigest(),
        "samples": samples.digest,
        "channels": settings.channel_choice,
        "state": settings.state,
        "schedule": dataclasses.asdict(settings.schedule),
        "repeats": settings.repeats,
        "score": [field.name for field in dataclasses.fields(Score)],
    }
