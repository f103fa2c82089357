"""The end of a round: gateways' sums become the next weights, in one transaction."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fleet.aggregation import (
    MasterState,
    PlanSum,
    blob_from_master,
    changed_values,
    plan_sum_from_manifest,
)
from fleet.campaign import (
    CampaignConfig,
    RoundKind,
    RoundOutcome,
    RoundPlan,
    bounds_for_cohort,
    cohort_weight,
    is_open,
    most_samples,
)
from fleet.campaign.answers import CollectAnswer, FoldPart
from fleet.campaign.planning import Assignment
from fleet.campaign.privacy import Entropy
from fleet.campaign.sets import SetOutcome, Unmasked, problem_with_masked
from fleet.campaign.stages import GATEWAY_LOST, NO_REPORT
from fleet.coordinator.private_rounds import publish
from fleet.coordinator.scores import add_counts, summarise, what_it_says
from fleet.errors import AggregationError, AnswerError, CampaignError
from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.store import RoundSummary, Store, WeightsVersion

logger = logging.getLogger(__name__)


def close_round(
    store: Store,
    campaign: str,
    driver: str,
    config: CampaignConfig,
    manifests: Mapping[str, Manifest],
    plan: RoundPlan,
    outcome: RoundOutcome,
    version: WeightsVersion,
    unmasked: Unmasked | None = None,
    entropy: Entropy = os.urandom,
) -> dict[str, Any]:
    """Aggregate, store and return a round's result; `version` is what the round trained from.

    Of a masked round the sums are those that were `unmasked`, and the result says what came of
    each set (`sets`), and whether the rule had enough of them (`rule`). The coordinator's own noise
    comes from `entropy`.

    The result has the counters of a collect answer added up, accuracies (`scores.summarise`),
    `asked`, `wanted`, `skipped`, `not_started` and `lost` with reasons, `missing` (who was asked
    and delivered nothing), `failed` (why, of those that were to), `explanations` of deltas that
    weren't counted in, and the weights before and after. `outcome` has answers only that passed
    `parts_of_gateway`. Where deltas have left the round while it ran, there are no new weights.
    """
    why = {one.device: one.plan_reason for one in plan.assignments}
    has_accuracy = all(one.model.has_accuracy for one in manifests.values())
    has_loss = all(one.model.loss != "none" for one in manifests.values())
    reports = [
        {
            **what_it_says(report, has_accuracy, has_loss),
            "gateway": gateway,
            "plan_reason": why.get(report.device, ""),
        }
        for gateway, answer in sorted(outcome.answers.items())
        for report in answer.reports
    ]
    missing = sorted(why.keys() - {str(report["device"]) for report in reports})
    result: dict[str, Any] = {
        **add_counts(dict(answer) for answer in outcome.answers.values()),
        **summarise(reports),
        "asked": len(plan.assignments),
        "wanted": plan.wanted,
        "skipped": plan.skipped,
        "not_started": outcome.not_started,
        "lost": outcome.lost,
        "missing": missing,
        "failed": _failed(plan, outcome, missing),
        "explanations": [
            {**dict(one), "gateway": gateway}
            for gateway, answer in sorted(outcome.answers.items())
            for one in answer.explanations
        ],
        "weights_before": version.sha256,
    }
    new = None
    parts: list[list[PlanSum]] = []
    if is_open(config, plan.kind):
        pass  # versions were made of it meanwhile
    elif unmasked is not None:
        parts = parts_of_sets(manifests, plan, unmasked.sets)
        result |= unmasked.figures(config.aggregation.chosen(parts))
        result["failed"] |= unmasked.guilty
        counts = any(one.values is not None for one in unmasked.sets)
        parts = [list(part) for part in config.aggregation.of_sets(parts)] if counts else []
        if config.privacy and plan.privacy:
            parts, told = publish(config.privacy, plan.privacy, parts, unmasked.sets, entropy)
            result["privacy"] = told
    elif plan.kind is RoundKind.TRAIN and result["accepted"] > 0:
        of_gateways = [
            parts_of_gateway(config, manifests, plan, gateway, answer)
            for gateway, answer in sorted(outcome.answers.items())
        ]
        parts = [[one for sums in same for one in sums] for same in zip(*of_gateways, strict=True)]
    if parts:
        new = next_weights(config, manifests, parts, version)
        layout = next(iter(manifests.values())).tensors
        result["weights_after"] = new.sha256
        result["changed_values"] = changed_values(version.blob, new.blob, layout)
    if not store.finish_round(campaign, driver, plan.number, "done", result, reports, new):
        # It has an end already, which is the one that counts: noise would be another in this one.
        return store.round(campaign, plan.number).result
    logger.info(
        "round %d done: %d accepted, median accuracy %s, then %s",
        plan.number,
        result["accepted"],
        result["median_accuracy_before"],
        result["median_accuracy_after"],
        extra={"campaign": campaign, "round": plan.number},
    )
    return result


def check_for_empty_rounds(
    store: Store, campaign: str, config: CampaignConfig, rounds: Iterable[RoundSummary]
) -> None:
    """Raises `CampaignError` where so many in a row brought nothing that more of them won't."""
    trained = [
        one
        for one in sorted(rounds, key=lambda one: one.number)
        if one.kind == RoundKind.TRAIN.value and one.state == "done"
    ]
    last = trained[-config.max_empty_rounds :]
    if len(last) < config.max_empty_rounds:
        return
    if not any(one.accepted for one in last):
        result = store.round(campaign, last[-1].number).result
        why = {key: result.get(key) for key in ("refused", "declined", "lost", "not_started")}
        raise CampaignError(f"no delta was accepted in {len(last)} rounds; the last one says {why}")
    if config.masking is None:
        return
    of_sets = [store.round(campaign, one.number).result.get("sets", ()) for one in last]
    if not any(one["counted"] for sets in of_sets for one in sets):
        whys = sorted({str(one["why"]) for one in of_sets[-1]})
        raise CampaignError(
            f"no set of devices was unmasked in {len(last)} rounds; of the last one's "
            f"{len(of_sets[-1])} each counted nothing: {', '.join(whys)}"
        )


def _failed(plan: RoundPlan, outcome: RoundOutcome, missing: Sequence[str]) -> dict[str, str]:
    """The class of reason of each device that delivered nothing.

    Where a gateway has what it wanted, those whose tasks it held back may never have had one, and
    where a round was ended before its time all may have been at work: their silence is no failure.
    """
    has_ended_early = {
        one.device
        for one in plan.assignments
        if one.gateway in outcome.answers
        and (
            outcome.answers[one.gateway].state == "cancelled"
            or (
                one.delay_seconds
                and outcome.answers[one.gateway].accepted >= plan.targets[one.gateway]
            )
        )
    }
    reasons = {
        one.device: GATEWAY_LOST if one.gateway in outcome.lost else NO_REPORT
        for one in plan.assignments
        if one.device not in has_ended_early
    }
    for answer in outcome.answers.values():
        reasons.update((one.device, one.kind) for one in answer.explanations)
        reasons.update(answer.declined_by)
    reasons.update(outcome.not_started)
    return {device: reasons[device] for device in missing if device in reasons}


def next_weights(
    config: CampaignConfig,
    manifests: Mapping[str, Manifest],
    parts: Sequence[Sequence[PlanSum]],
    version: WeightsVersion,
) -> WeightsVersion:
    """The version after `version`, from the parts of a fold."""
    layout = next(iter(manifests.values())).tensors
    state = MasterState(
        tuple(layout),
        np.frombuffer(version.master, "<f8").copy(),
        version.version,
        version.rule_state,
    )
    state = config.aggregation.apply(state, parts)
    blob = blob_from_master(state.layout, state.master, len(version.blob))
    return WeightsVersion(
        version.version + 1,
        hashlib.sha256(blob).hexdigest(),
        blob,
        state.master.astype("<f8").tobytes(),
        state.rule_state,
    )


def check_answer(
    config: CampaignConfig,
    manifests: Mapping[str, Manifest],
    plan: RoundPlan,
    gateway: str,
    answer: CollectAnswer,
) -> None:
    """Raise `AnswerError` where an answer can't be that of a gateway which did as it was asked."""
    if plan.masks is None:
        parts_of_gateway(config, manifests, plan, gateway, answer)
        return
    _check_reports(plan, gateway, answer)
    problem = problem_with_masked(manifests, plan, gateway, answer)
    if problem:
        raise _refusal(plan, gateway, problem)


def parts_of_sets(
    manifests: Mapping[str, Manifest], plan: RoundPlan, sets: Iterable[SetOutcome]
) -> list[list[PlanSum]]:
    """The parts of a masked round, each with the sums of its sets; 0, of weight 0, where one counts
    nothing, since a rule may want to know that it was dealt."""
    assert plan.masks is not None
    bundles = {one.plan: one.bundle for one in plan.assignments}
    parts: list[list[PlanSum]] = [[] for _ in range(plan.masks.parts)]
    for one in sets:
        manifest = manifests[bundles[one.plan]]
        entry = manifest.plan(one.plan)
        values, weight = bytes(8 * entry.delta_values), 0
        if one.values is not None:
            values, weight = one.values.astype("<i8").tobytes(), len(one.devices)
        parts[one.part].append(plan_sum_from_manifest(manifest, entry, values, weight))
    return parts


def parts_of_gateway(
    config: CampaignConfig,
    manifests: Mapping[str, Manifest],
    plan: RoundPlan,
    gateway: str,
    answer: CollectAnswer,
) -> list[list[PlanSum]]:
    """The parts of a gateway's fold, each with a sum per plan, placed on the model's coordinates.

    Raises `AnswerError` where the answer can't be that of a gateway which did what it was asked: a
    device or a plan that it wasn't given, more weight than its devices have, a value beyond what
    they can send, another fold.
    """
    _check_reports(plan, gateway, answer)
    mine = {one.device: one for one in plan.assignments if one.gateway == gateway}

    def refuse(what: str) -> AnswerError:
        return _refusal(plan, gateway, what)

    summed = sum(one.devices for fold in (answer.sums or {}).values() for one in fold)
    if answer.part is not None and summed > answer.accepted:
        raise refuse(f"sums of {summed} devices, {answer.accepted} deltas accepted")
    wanted = config.aggregation.fold().get("count", 1)
    parts: list[list[PlanSum]] = [[] for _ in range(wanted)]
    for plan_id, fold in (answer.sums or {}).items():
        devices = [one for one in mine.values() if one.plan == plan_id]
        if not devices:
            raise refuse(f"sums plan {plan_id[:16]}…, which it has no task for")
        if len(fold) != wanted:
            raise refuse(f"{len(fold)} sums of plan {plan_id[:16]}… where {wanted} are wanted")
        manifest = manifests[devices[0].bundle]
        entry = manifest.plan(plan_id)
        problem = _problem_with(config, manifest, entry, plan, devices, fold)
        if problem:
            raise refuse(f"plan {entry.name}: {problem}")
        for part, one in zip(parts, fold, strict=True):
            if not one.devices:
                continue
            try:
                part.append(plan_sum_from_manifest(manifest, entry, one.values, one.weight))
            except AggregationError as error:
                raise refuse(str(error)) from None
    return parts


def _refusal(plan: RoundPlan, gateway: str, what: str) -> AnswerError:
    return AnswerError(f"gateway {gateway}, round {plan.number}: {what}")


def _check_reports(plan: RoundPlan, gateway: str, answer: CollectAnswer) -> None:
    mine = {one.device for one in plan.assignments if one.gateway == gateway}
    strangers = [one.device for one in answer.reports if one.device not in mine]
    if strangers:
        raise _refusal(plan, gateway, f"reports of {strangers[0]}, which it has no task for")
    if answer.accepted != len({one.device for one in answer.reports}):
        raise _refusal(
            plan, gateway, f"{answer.accepted} deltas accepted, {len(answer.reports)} reported"
        )


def _problem_with(
    config: CampaignConfig,
    manifest: Manifest,
    entry: PlanEntry,
    plan: RoundPlan,
    devices: Sequence[Assignment],
    fold: Sequence[FoldPart],
) -> str:
    """Why a gateway can't have got these sums from these devices; empty where it can."""
    uniform = config.weighting == "uniform"
    heaviest = sum(1 if uniform else most_samples(one) for one in devices)
    weight = sum(one.weight for one in fold)
    if sum(one.devices for one in fold) > len(devices) or weight > heaviest:
        return (
            f"{sum(one.devices for one in fold)} devices of weight {weight}, "
            f"of {len(devices)} with {heaviest} at most"
        )
    counts, bounds = zip(
        *bounds_for_cohort(manifest, entry, cohort_weight(config, plan)), strict=True
    )
    limits = np.repeat(np.array(bounds, np.float64), counts)
    for one in fold:
        if not one.devices and not one.weight and not one.values:
            continue  # nobody delivered for this part
        if len(one.values) != 8 * entry.delta_values:
            return f"{len(one.values)} bytes instead of 8 for each of {entry.delta_values} values"
        # As floats: a product of two limits may leave int64, and one part in 2^53 is no matter.
        values = np.abs(np.frombuffer(one.values, "<i8").astype(np.float64))
        beyond = np.flatnonzero(values > limits * one.weight)
        if beyond.size:
            at = int(beyond[0])
            return f"value {at} is {values[at]:.0f}, beyond {one.weight} times {limits[at]:.0f}"
    return ""
