"""The end of a round: gateways' sums become the next weights, in one transaction."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from fleet.aggregation import (
    MasterState,
    PlanSum,
    apply,
    blob_from_master,
    changed_values,
    plan_sum_from_manifest,
)
from fleet.campaign import CampaignConfig, RoundKind, RoundOutcome, RoundPlan
from fleet.coordinator.scores import add_counts, summarise
from fleet.errors import AggregationError
from fleet.protocol.manifest import Manifest
from fleet.store import Store, WeightsVersion

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
) -> dict[str, Any]:
    """Aggregate, store and return a round's result; `version` is what the round trained from.

    The result has the counters of a collect answer added up, accuracies (`scores.summarise`),
    `asked`, `wanted`, `skipped` and `lost` with reasons, `missing` (who was asked and
    delivered nothing), `explanations` of deltas that weren't counted in, and the weights before
    and after.
    Raises `AggregationError` where sums don't fit the round.
    """
    why = {one.device: one.plan_reason for one in plan.assignments}
    reports = [
        {**report, "gateway": gateway, "plan_reason": why.get(str(report["device"]), "")}
        for gateway, answer in sorted(outcome.answers.items())
        for report in answer.get("reports", [])
    ]
    result: dict[str, Any] = {
        **add_counts(outcome.answers.values()),
        **summarise(reports),
        "asked": len(plan.assignments),
        "wanted": plan.wanted,
        "skipped": plan.skipped,
        "lost": outcome.lost,
        "missing": sorted(why.keys() - {str(report["device"]) for report in reports}),
        "explanations": [
            {**one, "gateway": gateway}
            for gateway, answer in sorted(outcome.answers.items())
            for one in answer.get("explanations", [])
        ],
        "weights_before": version.sha256,
    }
    new = None
    if plan.kind is RoundKind.TRAIN and result["accepted"] > 0:
        new = next_weights(config, manifests, plan, outcome, version)
        layout = next(iter(manifests.values())).tensors
        result["weights_after"] = new.sha256
        result["changed_values"] = changed_values(version.blob, new.blob, layout)
    store.finish_round(campaign, driver, plan.number, "done", result, reports, new)
    logger.info(
        "round %d done: %d accepted, median accuracy %s, then %s",
        plan.number,
        result["accepted"],
        result["median_accuracy_before"],
        result["median_accuracy_after"],
    )
    return result


def next_weights(
    config: CampaignConfig,
    manifests: Mapping[str, Manifest],
    plan: RoundPlan,
    outcome: RoundOutcome,
    version: WeightsVersion,
) -> WeightsVersion:
    """The version after `version`, from the sums of the gateways that closed the round."""
    by_plan = {one.plan: manifests[one.bundle] for one in plan.assignments}
    sums: list[PlanSum] = []
    for gateway, answer in outcome.answers.items():
        for plan_id, one in answer["sums"].items():
            manifest = by_plan.get(plan_id)
            if manifest is None:
                raise AggregationError(
                    f"gateway {gateway} sums plan {plan_id[:16]}… that round {plan.number} "
                    "doesn't have"
                )
            sums.append(
                plan_sum_from_manifest(
                    manifest, manifest.plan(plan_id), one["values"], int(one["weight"])
                )
            )
    layout = next(iter(manifests.values())).tensors
    state = MasterState(tuple(layout), np.frombuffer(version.master, "<f8").copy(), version.version)
    state = apply(state, sums, config.server_learning_rate)
    blob = blob_from_master(state.layout, state.master, len(version.blob))
    return WeightsVersion(
        version.version + 1,
        hashlib.sha256(blob).hexdigest(),
        blob,
        state.master.astype("<f8").tobytes(),
    )
