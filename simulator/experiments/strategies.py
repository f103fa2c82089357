"""Ways to learn that come with tinyfleet. Others are entry points of `tinyfleet.strategies`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from fleet.aggregation import FedAvg, blob_from_master, init, plan_sum_from_manifest
from fleet.campaign import CampaignConfig, RoundKind, RoundPlan
from fleet.protocol.manifest import Manifest
from fleet.store import Events, RoundRecord
from simulator.experiments.config import Count, Strategy
from simulator.experiments.fleet import VirtualFleet
from simulator.experiments.results import (
    Accuracy,
    RoundResult,
    StrategyResult,
    VersionScores,
)
from simulator.experiments.setting import Setting
from simulator.virtual.offline import (
    Score,
    TrainAlone,
    Tuning,
    pooled_samples,
    trained_delta,
    tuned_newcomers,
)
from simulator.virtual.pool import Figures
from simulator.world.draws import generator
from simulator.world.fields import problem

_NOT_HERE = ("kind", "model", "version", "name", "seed", "target", "description")
IDENTIFIER = "0123456789abcdef"


class Campaign(Strategy):
    """A campaign as the coordinator's service runs it, over gateways and devices in virtual time.

    It takes the fields of a campaign's file (docs/howto/write-a-campaign.md), but those that say
    which model and which devices; and ``plans: common`` for the largest update plan that all
    devices have room for, as FTTE gives all of them the same (arXiv 2510.03165). With the field
    ``personalize`` it is one that personalizes, and what devices work with in the end is scored
    besides, as if it were one version more.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: Literal["campaign"] = "campaign"

    @cached_property
    def _fields(self) -> Mapping[str, Any]:
        given = self.model_extra or {}
        if "personalize" in given:
            return {"score_first": False, "kind": "personalize", "last_round": "release", **given}
        return {"score_first": False, "last_round": "none", **given}

    @property
    def needs_keys(self) -> bool:
        """See `Strategy`."""
        return bool(self._fields.get("coding") == "masked")

    @property
    def has_common_plan(self) -> bool:
        """Whether all devices train the same."""
        return bool(self._fields.get("plans") == "common")

    @model_validator(mode="after")
    def _is_a_campaign(self) -> Self:
        wrong = sorted(set(_NOT_HERE) & set(self.model_extra or {}))
        if wrong:
            raise ValueError(f"{wrong[0]}: that is the experiment's; leave it out")
        try:
            self.campaign(0, ())
        except ValidationError as error:
            raise ValueError(problem(error, CampaignConfig)) from None
        return self

    def campaign(self, seed: int, common: tuple[str, ...]) -> CampaignConfig:
        """With a seed and, where it is asked for, the plan that all have in common."""
        plans = {"plans": common} if self.has_common_plan else {}
        return CampaignConfig.model_validate(
            {"name": "experiment", "seed": seed, **self._fields, **plans}
        )

    def run(self, setting: Setting, seed: int) -> StrategyResult:
        """See `Strategy`."""
        common = (setting.common_plan(),) if self.has_common_plan else ()
        config = self.campaign(seed, common)
        population, store_folder = setting.population, setting.folder
        with VirtualFleet(population, setting.pool, store_folder, setting.keys) as fleet:
            totals: dict[int, Figures] = {}
            begun: list[int] = []
            most = config.rounds * len(config.stages)

            def starts(number: int) -> None:
                if begun:
                    totals[begun[-1]] = fleet.pool.totals(fleet.clock.now)
                begun.append(number)
                setting.tell("rounds", len(begun) - 1, most)

            state = fleet.run_campaign(
                config, setting.manifests, setting.weights, IDENTIFIER, starts
            )
            spent = fleet.pool.figures(fleet.clock.now)
            has_own = config.kind == "personalize" and setting.evaluate.every
            own = fleet.pool.infer(setting.scored_devices) if has_own else {}
            if begun:
                totals[begun[-1]] = Figures.of_all(list(spent.values()))
            setting.tell("rounds", len(begun), most)
            setting.tables.add_spent(spent)
            return _result(fleet, setting, config, state, totals, common, own)


def _result(
    fleet: VirtualFleet,
    setting: Setting,
    config: CampaignConfig,
    state: str,
    totals: Mapping[int, Figures],
    common: tuple[str, ...],
    own: Mapping[int, Score],
) -> StrategyResult:
    store = fleet.store
    names = {
        plan.id: plan.name
        for text in setting.manifests.values()
        for plan in Manifest.parse(text).plans
    }
    begin = fleet.clock.wall() - fleet.clock.monotonic()
    rounds: list[RoundResult] = []
    versions: list[VersionScores] = []
    training_rounds = config.rounds * len(config.stages)
    boards = _boards(setting)
    # A round ends with the version that it makes; an asynchronous one may go on.
    made = {
        int(event.data["version"]): event.at - begin
        for event in Events(store).after(0, IDENTIFIER, training_rounds, ["version"])
    }
    if setting.evaluate.every:
        versions.append(setting.scores(0, 0.0, setting.weights))
    for summary in store.round_summaries(IDENTIFIER):
        # One by one: together they have a row for each device and round.
        record = store.round(IDENTIFIER, summary.number)
        plan = RoundPlan.from_json(record.plan)
        one = _round(store.round_times(IDENTIFIER, record.number), record, plan, totals, begin)
        if one is None:
            continue
        rounds.append(one)
        setting.tables.add_reports(
            [_report(of, one, names, boards) for of in store.reports(IDENTIFIER, record.number)]
        )
        if plan.kind is RoundKind.TRAIN and setting.is_scored(plan.training_round, training_rounds):
            setting.tell("scores", plan.training_round, training_rounds)
            weights = store.weights(IDENTIFIER, record.number).blob
            seconds = round(made.get(plan.training_round, one.ends_seconds), 6)
            versions.append(setting.scores(plan.training_round, seconds, weights))
    facts: dict[str, Any] = {"common_plan": common[0]} if common else {}
    if own:
        facts["kept"] = _kept(store.reports(IDENTIFIER, rounds[-1].number))
        facts["newcomers"] = _newcomers(setting, config, store.latest_weights(IDENTIFIER).blob)
        # Whoever never trains has what all share.
        versions.append(
            replace(
                setting.scored(training_rounds + 1, rounds[-1].ends_seconds, own),
                never_trained=versions[-1].never_trained,
            )
        )
    return StrategyResult(
        state,
        store.campaign(IDENTIFIER).reason,
        tuple(rounds),
        tuple(versions),
        store.latest_weights(IDENTIFIER).sha256,
        facts,
        has_fleet=True,
    )


def _newcomers(setting: Setting, config: CampaignConfig, weights: bytes) -> dict[str, Any]:
    """How devices that never train do with what all share, and after they have tuned it."""
    if not setting.evaluate.never_trained or not config.personalize.tunings:
        return {}
    manifest = config.manifest(Manifest.parse(next(iter(setting.manifests.values()))))
    plan = next(
        one for one in manifest.plans if not config.plans or {one.id, one.name} & {*config.plans}
    )
    epochs = config.personalize.tunings * int(config.tuning["epochs"])
    tuning = Tuning(plan.name, epochs, float(config.tuning["learning_rate"]), config.seed)
    found = zip(
        ("shared", "tuned"), tuned_newcomers(setting.population, weights, tuning), strict=True
    )
    accuracies = {name: Accuracy.of(scores) for name, scores in found}
    return {name: one._asdict() for name, one in accuracies.items() if one is not None}


def _kept(reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many devices work with what, by what they said last."""
    said = sorted(str(one.get("kept")) for one in reports)
    return dict(Counter(said))


def _boards(setting: Setting) -> dict[str, str]:
    facts = [setting.population.world.device(one) for one in setting.population.numbers]
    return {one.name: one.board for one in facts}


def _round(
    times: tuple[float, float | None],
    record: RoundRecord,
    plan: RoundPlan,
    totals: Mapping[int, Figures],
    begin: float,
) -> RoundResult | None:
    result, ends = record.result, times[1]
    if record.state != "done" or ends is None or not result:
        return None
    return RoundResult(
        number=record.number,
        kind=plan.kind.value,
        training_round=plan.training_round,
        begins_seconds=round(times[0] - begin, 6),
        ends_seconds=round(ends - begin, 6),
        asked=int(result["asked"]),
        accepted=int(result["accepted"]),
        late=int(result["late"]),
        declined=dict(result["declined"]),
        coded_bytes=int(result["coded_bytes"]),
        totals=totals.get(record.number, Figures()),
    )


def _report(
    report: Mapping[str, Any],
    one: RoundResult,
    plans: Mapping[str, str],
    boards: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "round": one.number,
        "kind": one.kind,
        "device": report["device"],
        "board": boards[report["device"]],
        "plan": plans[report["plan"]],
        "train_samples": report["train_samples"],
        "held_out": report["held_out"],
        "correct_before": report["correct_before"],
        "correct_after": report["correct_after"],
        "correct_local": report.get("correct_local"),
        "kept": report.get("kept"),
        "loss_before": report["loss_before"],
        "loss_after": report["loss_after"],
        "coded_bytes": report["coded_bytes"],
        "seconds": round(report["seconds"], 6),
    }


class _WithoutFleet(Strategy):
    """Training as a campaign's devices train, but without a fleet."""

    plan: str
    """Name of the update plan."""
    rounds: Count = 10
    epochs: Count = 1
    """A round."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01


class LocalOnly(_WithoutFleet):
    """Every device trains by itself, on its own samples: what a fleet has to be better than."""

    kind: Literal["local-only"] = "local-only"

    def run(self, setting: Setting, seed: int) -> StrategyResult:
        """See `Strategy`. The scores are those of each device's own weights."""
        job = TrainAlone(
            setting.weights, self.plan, self.rounds, self.epochs, self.learning_rate, seed
        )
        setting.tell("training alone", 0, 1)
        scores = setting.pool.each(job, setting.scored_devices)
        setting.tell("training alone", 1, 1)
        versions = tuple(
            setting.scored(done, 0.0, {number: of[done] for number, of in scores.items()})
            for done in range(self.rounds + 1)
            if setting.evaluate.every and (done == 0 or setting.is_scored(done, self.rounds))
        )
        return StrategyResult("finished", versions=versions)


class Centralized(_WithoutFleet):
    """All samples in one place: what a fleet can hope for."""

    kind: Literal["centralized"] = "centralized"

    def run(self, setting: Setting, seed: int) -> StrategyResult:
        """See `Strategy`."""
        population, text = setting.population, next(iter(setting.manifests.values()))
        manifest = Manifest.parse(text)
        plan = manifest.plan(self.plan)
        samples, state = pooled_samples(population), init(manifest.tensors, setting.weights)
        weights, random, versions = setting.weights, generator(seed, "together"), []
        for done in range(self.rounds + 1):
            setting.tell("training together", done, self.rounds)
            if done:
                delta = trained_delta(
                    population,
                    self.plan,
                    weights,
                    samples,
                    self.epochs,
                    self.learning_rate,
                    random,
                )
                values = delta.astype("<i8").tobytes()
                change = plan_sum_from_manifest(manifest, plan, values, 1)
                state = FedAvg().apply(state, [[change]])
                weights = blob_from_master(manifest.tensors, state.master, len(weights))
            if setting.evaluate.every and (done == 0 or setting.is_scored(done, self.rounds)):
                versions.append(setting.scores(done, 0.0, weights))
        digest = hashlib.sha256(weights).hexdigest()
        return StrategyResult("finished", versions=tuple(versions), weights_sha256=digest)
