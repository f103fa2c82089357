"""A campaign before it is started: what it would do, by what is known of the devices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from fleet.campaign.config import CampaignConfig
from fleet.campaign.gates import ScoreGate, smallest_detectable_drop
from fleet.campaign.planning import (
    DeviceInfo,
    Members,
    RoundKind,
    deal_stages,
    eligible,
    schedule,
)
from fleet.protocol.manifest import Manifest
from fleet.registry import Device, Filter
from fleet.service import schema
from fleet.store import Models, Registry, Version

_MAIN = {
    "adapt": RoundKind.TRAIN,
    "evaluate": RoundKind.SCORE_LAST,
    "rollout": RoundKind.RELEASE,
}
"""What a campaign of a kind is for."""


def plan_campaign(
    config: CampaignConfig,
    version: Version,
    models: Models,
    registry: Registry,
    preview: schema.DevicePreview,
) -> schema.CampaignPlan:
    """What the campaign would do from `version` on; nothing is done."""
    manifests = {
        bundle: Manifest.parse(text) for bundle, text in models.manifests(version.model).items()
    }
    now = registry.now()
    devices = [
        info
        for one in registry.export(Filter.parse(config.target))
        if not one.retired and (info := _info(one, now)) is not None
    ]
    members = Members(frozenset(one.device for one in devices))
    ready, skipped = eligible(config, devices, manifests, members, _MAIN[config.kind])
    dealt = deal_stages(config, {one.device: f"{one.gateway}/{one.board}" for one in devices}, {})
    held_out = {one.device: one.held_out_samples for one in devices}
    stages = []
    for number, stage in enumerate(config.stages):
        names = [name for name, at in dealt.items() if at <= number]
        drops = {
            f"{gate.measure}{' by ' + gate.by if gate.by else ''}": _finite(
                smallest_detectable_drop(gate, [held_out[name] for name in names])
            )
            for gate in stage.gates
            if isinstance(gate, ScoreGate)
        }
        stages.append(
            schema.StagePlan(stage=stage.name, devices=len(names), smallest_detectable_drop=drops)
        )
    asked = 0
    down = up = 0
    blob_bytes = next(iter(manifests.values())).weights.bytes
    steps = schedule(config)
    for step in steps:
        names = [name for name, at in dealt.items() if at <= step.stage and name in ready]
        if step.kind is RoundKind.TRAIN:
            wanted = config.cohort_size or math.ceil(config.cohort_share * len(names))
            share = min(1.0, wanted * (1 + config.over_selection) / max(1, len(names)))
            down += math.ceil(share * len(names)) * blob_bytes
            bits = sum(
                manifests[ready[name].bundle].plan(ready[name].plan).delta_values
                * config.delta_bits_per_value
                for name in names
            )
            up += math.ceil(share * bits / 8)
            asked += 1
        elif config.kind != "adapt" and step.kind is RoundKind.SCORE_LAST:
            down += len(names) * blob_bytes
    return schema.CampaignPlan(
        version=version.name,
        target=preview,
        ready=len(ready),
        skipped=dict(Counter(_class_of(reason) for reason in skipped.values())),
        stages=stages,
        plans=_plans(manifests.values(), ready),
        rounds=len(steps),
        bytes_down=down,
        bytes_up=up,
        longest_seconds=float(len(steps) * config.deadline_seconds),
        flash_slot_writes_per_device=asked + (config.kind == "rollout"),
    )


def _plans(manifests: Iterable[Manifest], ready: object) -> list[schema.PlanUse]:
    assert isinstance(ready, dict)
    entries = {plan.id: plan for one in manifests for plan in one.plans}
    return [
        schema.PlanUse(
            plan=plan,
            name=entries[plan].name,
            devices=count,
            delta_values=entries[plan].delta_values,
            reasons=dict(
                Counter(_class_of(one.plan_reason) for one in ready.values() if one.plan == plan)
            ),
        )
        for plan, count in Counter(one.plan for one in ready.values()).most_common()
    ]


def _class_of(reason: str) -> str:
    """A reason without the figures of its device, so that those of a kind are counted together."""
    words = ["…" if any(letter.isdigit() for letter in word) else word for word in reason.split()]
    return " ".join(words)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _info(one: Device, now: float) -> DeviceInfo | None:
    """A device as a gateway last told of it; None where none has."""
    seen = one.observed
    if seen is None:
        return None
    return DeviceInfo(
        device=one.device,
        gateway=seen.gateway,
        board=seen.board,
        bundle=seen.bundle,
        current=seen.current,
        candidate=seen.candidate,
        lease=seen.lease,
        free_sram_bytes=seen.free_sram_bytes,
        battery_percent=seen.battery_percent,
        charging=seen.charging,
        link_bits_per_second=seen.link_bits_per_second,
        train_samples=seen.train_samples,
        held_out_samples=seen.held_out_samples,
        online=seen.online,
        seen_age_seconds=max(0.0, now - seen.last_seen),
        last_seen=seen.last_seen,
    )
