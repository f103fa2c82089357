"""From a model and labelled samples to update plans: what `tinyfleet plan` does.

Measure the image, analyse contributions, search, then check what was assumed: plans are linked for
the board, run, and their deltas of rounds coded. That contributions add up is an assumption too:
the best sum races against other plans, trained as the fleet will (``race``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    ChannelOrder,
    Selection,
    channel_counts,
    order_by,
    order_by_norm,
    plan_spec,
)
from codegen.plan_search.contributions import Contributions, Journal
from codegen.plan_search.costs import (
    CostModel,
    Costs,
    DeltaBits,
    Limits,
    rest_of,
)
from codegen.plan_search.finalists import CHOSEN, HEAD_ONLY, given_plans, searched_plans
from codegen.plan_search.finals import compete
from codegen.plan_search.finetune import (
    Trial,
    candidates,
    finetune_contributions,
    measure,
)
from codegen.plan_search.fisher import channel_traces, fisher_contributions
from codegen.plan_search.proof import Bench, Linked, Proof, SramExceeded
from codegen.plan_search.proposals import PlanningResult, Proposal, Settings, Variant
from codegen.plan_search.samples import Samples, hold_out
from codegen.plan_search.search import Found, search
from codegen.plan_search.training import (
    Score,
    with_trained_head,
)
from codegen.program import blob
from codegen.program.plans import LastLayers, Plan, PlanSpec, State, default_plans, resolve
from device_runtime import engine_sources

HEAD_EPOCHS = 10
FISHER_SAMPLES = 128
CORRECTIONS = 6

ACCUMULATIONS = (8, 32)
MOMENTUM = 0.9


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


@dataclass(frozen=True)
class _Entry:
    """A plan that takes part in the last choice; ``found`` is None for one of the user's."""

    spec: PlanSpec
    plan: Plan
    found: Found | None
    linked: Linked


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
        if graph.ending.loss != "cross-entropy":
            raise PlanError(
                f"model {graph.name} has the loss {graph.ending.loss}; plans are searched for "
                "classifiers only, by their accuracy. Write a plan by hand, or take the default "
                "ones"
            )
        self.board = board
        self.settings = settings
        self.tell = tell
        self.journal = Journal(journal, _identity(graph, samples, settings))
        self.samples = samples
        self.training, self.held_out = hold_out(samples, settings.schedule.seed)
        self.untrained = graph
        self.graph = self._with_warm_head(graph)
        # A fleet begins with the weights that are built in: its first deltas are the largest.
        self.proof = Proof(
            graph, board, self.training, settings.schedule, settings.round, bench, tell
        )

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
            round=settings.round,
        )
        head = self._head_alone(limits)
        traces = self._traces()
        order = self._order(traces)
        bits = self._reference_bits()
        model = CostModel(graph, order, rest_of(head.report), bits, settings.state)
        model.measured[Selection()] = head.costs
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
        found = self._checked(contributions, model, limits)
        selected = searched_plans(graph, contributions, model, limits, found, self.tell)
        scores = measure(trial, [Selection(), found.selection], self.journal, self.tell)
        entries = {
            name: _Entry(
                plan_spec(
                    item.selection,
                    order,
                    name=name,
                    state=settings.state,
                    choice=settings.channel_choice,
                ),
                model.plan(item.selection),
                item,
                image,
            )
            for name, item, image in self._linked(selected, model, limits)
        }
        left_out = [name for name in selected if name not in entries]
        given, refused = self._given(limits, entries)
        entries |= given
        result = compete(
            self.untrained,
            self.samples,
            {name: entry.plan for name, entry in entries.items()},
            {name: entry.linked.costs.sram_bytes for name, entry in entries.items()},
            settings.finals,
            settings.schedule.seed,
            self.journal,
            self.tell,
        )
        proposals = [
            Proposal(
                name=shown,
                origin=name,
                spec=entry.spec.model_copy(update={"name": shown}),
                plan=entry.plan,
                predicted=entry.found.value if entry.found else None,
                optimal=entry.found is not None and entry.found.optimal,
                linked=entry.linked,
                standing=result.standings[name],
            )
            for name, entry in entries.items()
            for shown in [CHOSEN if name == result.chosen else name]
        ]
        return PlanningResult(
            board=self.board.name,
            limits=limits,
            samples=len(self.training),
            contributions=contributions,
            summed_gain=scores[Selection()].loss - scores[found.selection].loss,
            finals=settings.finals,
            race=result,
            proposals=tuple(sorted(proposals, key=lambda item: item.costs.sram_bytes)),
            left_out=(*left_out, *refused),
            bits=model.bits,
            variants=tuple(self._variants(entries[result.chosen].spec)),
        )

    def _reference_bits(self) -> DeltaBits:
        """Bits per value of the delta of a plan of middle size."""
        key = f"delta bits, round of {self.settings.round}"
        if key not in self.journal:
            plans = default_plans(self.graph)
            middle = dataclasses.replace(plans[min(1, len(plans) - 1)], state=self.settings.state)
            bits = self.proof.delta_bits(middle)
            self.journal.add(key, dataclasses.asdict(bits))
        return DeltaBits(**self.journal[key])

    def _head_alone(self, limits: Limits) -> Linked:
        """The plan that is part of every other, which must be within the limits."""
        head = resolve(PlanSpec(name=HEAD_ONLY, state=self.settings.state), self.graph)
        try:
            linked = self.proof.of(head)
        except SramExceeded as error:
            needs = str(error)
        else:
            if limits.allow(linked.costs):
                return linked
            needs = str(linked.costs)
        raise BudgetError(
            f"no plan fits {limits} on board {self.board.name}: the head alone needs {needs}; "
            f"use a smaller model, a larger board, or raise the limits{self._without_head(limits)}"
        )

    def _without_head(self, limits: Limits) -> str:
        """What can be trained within ``limits`` where the head can't be: biases, if any."""
        depth = self.last
        while depth > 0:
            spec = PlanSpec(biases=LastLayers(last=depth), head=False, state=self.settings.state)
            try:
                costs = self.proof.of(resolve(spec, self.graph)).costs
            except SramExceeded:
                costs = None
            if costs is not None and limits.allow(costs):
                plan = json.dumps(spec.model_dump(mode="json", exclude_defaults=True))
                return (
                    f". Without the head a plan of biases fits, whose gain isn't measured: {plan} "
                    f"needs {costs}"
                )
            depth //= 2
        return ""

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

    def _checked(self, contributions: Contributions, model: CostModel, limits: Limits) -> Found:
        """The plan of highest sum whose image, run and trained, is within the limits.

        Where one turns out to cost more than predicted, the model learns it.
        """
        layers = [*contributions.weights]
        for _ in range(CORRECTIONS):
            self.tell("searching", 0, 1)
            found = search(contributions, model.of, model.increments(layers), limits)
            assert found is not None, "the head alone was checked"
            self.tell("searching", 1, 1)
            if self._measured(found.selection, model, limits) is not None:
                return dataclasses.replace(found, costs=model.of(found.selection))
        head = Selection()
        return Found(head, contributions.biases[0], model.of(head), optimal=False)

    def _measured(self, selection: Selection, model: CostModel, limits: Limits) -> Linked | None:
        """The image of ``selection``, None where it exceeds the limits; ``model`` learns of it."""
        plan, predicted = model.plan(selection), model.estimated(selection)
        linked = self.proof.of(plan)
        costs = linked.costs
        model.measured[selection] = costs
        if limits.allow(costs):
            return linked
        if costs.sram_bytes > limits.sram_bytes:
            model.rest_bytes += costs.sram_bytes - predicted.sram_bytes
        if limits.delta_bytes is not None and costs.delta_bytes > limits.delta_bytes:
            model.bits = model.bits.at_least(self.proof.bits_of(plan))
            short = costs.delta_bytes / model.estimated(selection).delta_bytes
            model.bits = model.bits.times(max(1.0, short))
        if limits.instructions is not None and costs.instructions > limits.instructions:
            model.learn_instructions(selection)
        return None

    def _linked(
        self, selected: Mapping[str, Found], model: CostModel, limits: Limits
    ) -> Iterator[tuple[str, Found, Linked]]:
        """Those of ``selected`` that are within the limits, with their images."""
        for done, (name, item) in enumerate(selected.items()):
            self.tell("measuring plans", done, len(selected))
            image = self._measured(item.selection, model, limits)
            if image is not None:
                yield name, item, image
        self.tell("measuring plans", len(selected), len(selected))

    def _given(
        self, limits: Limits, entries: Mapping[str, _Entry]
    ) -> tuple[dict[str, _Entry], list[str]]:
        """The user's plans that are within the limits, and the names of the others.

        One that the search has found as well is in ``entries`` already.
        """
        given: dict[str, _Entry] = {}
        refused = []
        known = {entry.plan.id for entry in entries.values()}
        for spec, plan in given_plans(
            self.settings.given, self.graph, self.settings.state, [*entries]
        ):
            if plan.id in known:
                continue
            known.add(plan.id)
            try:
                linked = self.proof.of(plan)
            except SramExceeded:
                refused.append(spec.name)
                continue
            if limits.allow(linked.costs):
                given[spec.name] = _Entry(spec, plan, None, linked)
            else:
                refused.append(spec.name)
        return given, refused

    def _variants(self, spec: PlanSpec) -> Iterator[Variant]:
        changes: list[dict[str, Any]] = [
            {"state": state} for state in get_args(State) if state != spec.state
        ]
        changes += [{"accumulate": count} for count in ACCUMULATIONS]
        changes.append({"momentum": MOMENTUM})
        for change in changes:
            (option,) = (f"{key} {value}" for key, value in change.items())
            steps = self.settings.round.samples * self.settings.round.epochs
            if change.get("accumulate", 1) > steps:
                yield Variant(option, None, f"a round of {steps:,} steps ends before a batch does")
                continue
            try:
                plan = resolve(spec.model_copy(update=change), self.graph)
            except PlanError as error:
                yield Variant(option, None, str(error))
            else:
                yield self._variant(option, plan)

    def _variant(self, option: str, plan: Plan) -> Variant:
        try:
            return Variant(option, self.proof.of(plan).costs)
        except SramExceeded as error:
            return Variant(option, None, f"needs {error}")


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
