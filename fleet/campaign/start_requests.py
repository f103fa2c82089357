"""What gateways are asked for at a round's start: docs/specification/gateway.md, `start`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fleet.aggregation.mean import EXACT_LIMIT, UNITS_PER_STEP
from fleet.campaign.config import CampaignConfig
from fleet.campaign.masking import MaskedRound
from fleet.campaign.planning import Assignment, RoundKind, RoundPlan
from fleet.protocol import fields
from fleet.protocol.keys import TaskKeys, unmaskers_digest
from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.messages import NO_UNMASKERS
from fleet.protocol.round_parameters import RoundParameters
from fleet.protocol.tasks import RoundTasks

# Samples may come to a device between its announcement and its training.
SAMPLES_MAY_GROW = 2


def bounds_for_cohort(manifest: Manifest, plan: PlanEntry, weight: int) -> list[list[int]]:
    """[values, bound] per segment: the largest values that a gateway is to accept.

    That is what a device can send, or less, so that a cohort of so much `weight` (the training
    samples that it announced, or its devices) stays inside the aggregation's exact range whatever
    it sends: an int32 bias may move by 2^32 steps by its limit, which a few thousand samples
    already take beyond it.
    """
    # The aggregation's own check takes a plan's largest value times its largest unit.
    unit = int(manifest.steps_per_unit(plan).max(initial=0) * UNITS_PER_STEP)
    exact = (EXACT_LIMIT - 1) // max(1, unit * weight * SAMPLES_MAY_GROW)
    return [[count, min(bound, exact)] for count, bound in manifest.value_bounds(plan)]


def start_request(
    config: CampaignConfig,
    campaign: str,
    plan: RoundPlan,
    gateway: str,
    manifests: Mapping[str, Manifest],
    blobs: Mapping[str, bytes],
    keys: TaskKeys | None = None,
) -> dict[str, Any]:
    """The `start` request for one gateway (docs/specification/gateway.md).

    `blobs` has the versions that the round's devices begin with, by digest. With `keys` tasks are
    signed. The same plan always gives the same request but for keys, so that repeating it is
    harmless.
    """
    mine = [one for one in plan.assignments if one.gateway == gateway]
    weight = cohort_weight(config, plan)
    parameters = round_parameters(config, plan)
    tasks = round_tasks(campaign, plan, parameters)
    sizes: dict[str, dict[str, Any]] = {}
    devices: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for one in mine:
        begins_with = one.weights or plan.weights
        of = devices.setdefault((one.plan, begins_with), {})
        of[one.device] = [one.lease, most_samples(one)]
        if one.delay_seconds or one.part or keys is not None:
            signature = b""
            if keys is not None:
                ids = bytes.fromhex(one.plan), bytes.fromhex(begins_with)
                task = tasks.task(one.device, one.lease, *ids, len(blobs[begins_with]))
                signature = keys.sign(gateway, one.device, task)
            of[one.device] += [one.delay_seconds, signature, one.part]
        if one.plan in sizes:
            continue
        manifest = manifests[one.bundle]
        entry = manifest.plan(one.plan)
        sizes[one.plan] = {"values": entry.delta_values}
        if plan.masks is None:
            sizes[one.plan]["bounds"] = bounds_for_cohort(manifest, entry, weight)
        else:
            # What is masked has no bounds until it is unmasked.
            sizes[one.plan]["values"] = plan.masks.parameters.values(entry.delta_values)
    return {
        "campaign": campaign,
        "round": plan.on_wire,
        "action": plan.kind.action,
        "seed": plan.seed,
        "fold": _fold(config, plan),
        "blobs": [
            {"sha256": digest, "data": blobs[digest]}
            for digest in sorted({digest for _, digest in devices})
        ],
        "tasks": [
            {"plan": name, "weights": digest, "devices": of}
            for (name, digest), of in devices.items()
        ],
        "plans": sizes,
        "target": plan.targets[gateway],
        **parameters.model_dump(),
        **({} if plan.masks is None else {"masks": _masks(plan.masks)}),
        **({} if keys is None else {"keyring": keys.keyring.encode()}),
        "personal": plan.personal,
    }


def parameters_of(config: CampaignConfig, kind: RoundKind, training_round: int) -> RoundParameters:
    """What a round of a kind asks of its devices; training rounds are counted with it."""
    if kind is RoundKind.TRAIN_LOCAL:
        return config.parameters(1)
    parameters = config.parameters(training_round)
    if kind is RoundKind.PERSONALIZE:
        return parameters.model_copy(update=config.tuning)
    return parameters


def round_parameters(config: CampaignConfig, plan: RoundPlan) -> RoundParameters:
    """What a round asks of its devices; of what sends no values none are masked."""
    parameters = parameters_of(config, plan.kind, plan.training_round)
    if plan.masks is None and parameters.coding == "masked":
        return parameters.model_copy(update={"coding": "rice"})
    return parameters


def round_tasks(campaign: str, plan: RoundPlan, parameters: RoundParameters) -> RoundTasks:
    """The tasks of a round's devices, as gateways publish them."""
    masks = plan.masks
    return RoundTasks(
        bytes.fromhex(campaign),
        plan.on_wire,
        plan.kind.action,
        plan.seed,
        parameters,
        plan.personal,
        masks.parameters if masks else None,
        unmaskers_digest(masks.keys) if masks else NO_UNMASKERS,
    )


def _masks(masks: MaskedRound) -> dict[str, Any]:
    return {
        **asdict(masks.parameters),
        "unmaskers": len(masks.unmaskers),
        "unmaskers_digest": unmaskers_digest(masks.keys),
    }


def _fold(config: CampaignConfig, plan: RoundPlan) -> dict[str, Any]:
    if is_open(config, plan.kind):
        return {"name": "arrivals"}
    if plan.masks is not None:
        return {"name": "dealt", "count": plan.masks.parts}
    return config.aggregation.fold()


def is_open(config: CampaignConfig, kind: RoundKind) -> bool:
    """Whether deltas leave such a round while it runs."""
    return config.asynchronous is not None and kind is RoundKind.TRAIN


def cohort_weight(config: CampaignConfig, plan: RoundPlan) -> int:
    """What the devices of all gateways weigh together, since their sums are added up."""
    if config.weighting == "uniform":
        return len(plan.assignments)
    return sum(one.train_samples for one in plan.assignments)


def most_samples(assignment: Assignment) -> int:
    """How many training samples a device may claim to have trained on."""
    return min(fields.SAMPLES.most, SAMPLES_MAY_GROW * assignment.train_samples)
