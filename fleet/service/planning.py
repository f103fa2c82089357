"""A campaign before it is started: what it would do, by what is known of the devices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from fleet.campaign.config import CampaignConfig
from fleet.campaign.pacing import likely_delay, longest_delay
from fleet.campaign.planning import (
    Assignment,
    DeviceInfo,
    Members,
    RoundKind,
    RoundPlan,
    deal_stages,
    eligible,
    loads_of,
    most_at_once,
    schedule,
)
from fleet.campaign.sets import hide
from fleet.campaign.stages import check_gates
from fleet.campaign.start_requests import is_open
from fleet.errors import CampaignError
from fleet.protocol.manifest import Manifest
from fleet.registry import Device, Filter
from fleet.service import schema
from fleet.service.campaign_schema import (
    CampaignPlan,
    DeviceCost,
    PlanUse,
    SetPlan,
    StagePlan,
)
from fleet.store import Models, Registry, Timing, Version
from fleet.store.figures import of_a_kind

_MAIN = {
    "adapt": RoundKind.TRAIN,
    "personalize": RoundKind.TRAIN,
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
    timings: Iterable[Timing],
    sites: Mapping[str, str],
    sights: list[schema.SightView],
) -> CampaignPlan:
    """What the campaign would do from `version` on; nothing is done.

    `timings` are those of past campaigns of the model, `sites` those of gateways, `sights` who
    could see what. Raises
    `CampaignError` where its pace can't be kept to, and for gates that the model has no scores for.
    """
    manifests = {
        bundle: config.manifest(Manifest.parse(text))
        for bundle, text in models.manifests(version.model).items()
    }
    check_gates(config.stages, next(iter(manifests.values())))
    devices, ready, skipped = could_take_part(config, manifests, registry)
    dealt = deal_stages(config, {one.device: f"{one.gateway}/{one.board}" for one in devices}, {})
    held_out = {one.device: one.held_out_samples for one in devices}
    stages = []
    for number, stage in enumerate(config.stages):
        names = [name for name, at in dealt.items() if at <= number]
        samples = [held_out[name] for name in names]
        drops = {
            what: _finite(drop)
            for gate in stage.gates
            for what, drop in gate.smallest_drops(samples, config.looks).items()
        }
        stages.append(
            StagePlan(stage=stage.name, devices=len(names), smallest_detectable_drop=drops)
        )
    asked = 0
    down = up = 0
    longest = longest_round = 0.0
    expected: float | None = 0.0
    blob_bytes = next(iter(manifests.values())).weights.bytes
    measured = _Measured(timings, manifests)
    steps = schedule(config)
    for (stage_number, kind), count in Counter((one.stage, one.kind) for one in steps).items():
        taking_part = [ready[name] for name in ready if dealt.get(name, math.inf) <= stage_number]
        loads = loads_of(config, kind, manifests, sites, taking_part)
        share = 1.0
        if kind is RoundKind.TRAIN:
            wanted = most_at_once(config, len(taking_part))
            share = min(1.0, wanted * (1 + config.over_selection) / max(1, len(taking_part)))
            tasks = _tasks(config, math.ceil(share * len(taking_part)), count)
            down += tasks * blob_bytes
            bits = sum(
                manifests[one.bundle].plan(one.plan).delta_values * config.delta_bits_per_value
                for one in taking_part
            )
            up += math.ceil(bits / 8 * tasks / max(1, len(taking_part)))
            asked += count
        elif not config.trains and kind is RoundKind.SCORE_LAST:
            down += count * len(taking_part) * blob_bytes
        last = longest_delay(config.pace, loads, math.ceil(share * len(taking_part)))
        longest += count * (config.deadline_seconds + last)
        longest_round = max(longest_round, config.deadline_seconds + last)
        likely = likely_delay(config.pace, loads, share)
        slowest = measured.slowest(taking_part, kind.action)
        # When versions that don't wait for devices are made can't be told from the slowest's time.
        waits = not is_open(config, kind)
        if expected is not None and slowest is not None and waits:
            expected += count * (likely + min(slowest, config.deadline_seconds))
        else:
            expected = None
    sets, too_few = _sets(config, ready, devices, manifests)
    return CampaignPlan(
        sets=sets,
        too_few_to_hide=too_few,
        who_sees=sights,
        version=version.name,
        target=preview,
        ready=len(ready),
        skipped=of_a_kind(skipped.values()),
        stages=stages,
        plans=_plans(manifests.values(), ready),
        rounds=len(steps),
        bytes_down=down,
        bytes_up=up,
        longest_seconds=longest,
        longest_round_seconds=longest_round,
        expected_seconds=expected,
        costs=measured.costs(ready.values(), Counter(one.kind.action for one in steps)),
        flash_slot_writes_per_device=asked + (config.kind == "rollout"),
    )


def could_take_part(
    config: CampaignConfig, manifests: Mapping[str, Manifest], registry: Registry
) -> tuple[list[DeviceInfo], dict[str, Assignment], dict[str, str]]:
    """Devices that the campaign is for, those that could take part now, why the others can't."""
    now = registry.now()
    devices = [
        info
        for one in registry.export(Filter.parse(config.target))
        if not one.retired and (info := _info(one, now)) is not None
    ]
    members = Members(frozenset(one.device for one in devices))
    return devices, *eligible(config, devices, manifests, members, _MAIN[config.kind])


def _sets(
    config: CampaignConfig,
    ready: Mapping[str, Assignment],
    devices: Iterable[DeviceInfo],
    manifests: Mapping[str, Manifest],
) -> tuple[list[SetPlan], int]:
    """The sets of a training round of all that are ready, and how many have no place in one."""
    if config.masking is None or not ready:
        return [], 0
    whole = RoundPlan(
        0, RoundKind.TRAIN, config.seed, "", len(ready), tuple(ready.values()), {}, {}
    )
    try:
        hidden = hide(config, whole, devices, manifests, ())
    except CampaignError:
        return [], len(ready)
    members = Counter((one.plan, one.part) for one in hidden.assignments)
    names = {plan.id: plan.name for one in manifests.values() for plan in one.plans}
    found = []
    for plan in sorted({plan for plan, _ in members}, key=lambda one: names[one]):
        sizes = [size for (of, _), size in members.items() if of == plan]
        found.append(
            SetPlan(
                plan=plan,
                name=names[plan],
                devices=sum(sizes),
                sets=len(sizes),
                smallest=min(sizes),
            )
        )
    return found, len(hidden.skipped)


def _tasks(config: CampaignConfig, cohort: int, rounds: int) -> int:
    """How many tasks so many training rounds have, the first of them for a whole cohort."""
    if config.asynchronous is None:
        return rounds * cohort
    return cohort + (rounds - 1) * min(config.asynchronous.buffer, cohort)


class _Measured:
    """What devices took in past campaigns, by update plan and board."""

    def __init__(self, timings: Iterable[Timing], manifests: Mapping[str, Manifest]) -> None:
        self._seconds = {(one.plan, one.board, one.action): one.seconds for one in timings}
        self._manifests = manifests

    def _kind_of(self, one: Assignment) -> tuple[str, str]:
        return one.plan, self._manifests[one.bundle].board.name

    def slowest(self, devices: Iterable[Assignment], action: str) -> float | None:
        """What the slowest kind of these devices takes; None where one kind isn't known."""
        found = [
            self._seconds.get((*kind, action)) for kind in {self._kind_of(one) for one in devices}
        ]
        known = [one for one in found if one is not None]
        return max(known, default=None) if len(known) == len(found) else None

    def costs(self, devices: Iterable[Assignment], rounds: Mapping[str, int]) -> list[DeviceCost]:
        """Of each kind of these devices, for so many rounds of each action."""
        kinds: dict[tuple[str, str], list[Assignment]] = {}
        for one in devices:
            kinds.setdefault(self._kind_of(one), []).append(one)
        found = [self._cost(kind, of, rounds) for kind, of in kinds.items()]
        return sorted(found, key=lambda one: (-one.devices, one.name, one.board))

    def _cost(
        self, kind: tuple[str, str], devices: list[Assignment], rounds: Mapping[str, int]
    ) -> DeviceCost:
        plan, board = kind
        manifests = [self._manifests[bundle] for bundle in sorted({one.bundle for one in devices})]
        powers = [one.board.active_milliwatts for one in manifests]
        power = next((one for one in powers if one is not None), None)
        each = {action: self._seconds.get((*kind, action)) for action in rounds}
        whole = _sum(
            None if (one := each[action]) is None else n * one for action, n in rounds.items()
        )
        return DeviceCost(
            plan=plan,
            name=manifests[0].plan(plan).name,
            board=board,
            devices=len(devices),
            round_seconds=each,
            seconds=whole,
            active_milliwatts=power,
            round_millijoules={action: _times(one, power) for action, one in each.items()},
            millijoules=_times(whole, power),
        )


def _sum(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [one for one in found if one is not None]
    return math.fsum(known) if len(known) == len(found) else None


def _times(seconds: float | None, milliwatts: int | None) -> float | None:
    return None if seconds is None or milliwatts is None else seconds * milliwatts


def _plans(manifests: Iterable[Manifest], ready: object) -> list[PlanUse]:
    assert isinstance(ready, dict)
    entries = {plan.id: plan for one in manifests for plan in one.plans}
    return [
        PlanUse(
            plan=plan,
            name=entries[plan].name,
            devices=count,
            delta_values=entries[plan].delta_values,
            reasons=of_a_kind(one.plan_reason for one in ready.values() if one.plan == plan),
        )
        for plan, count in Counter(one.plan for one in ready.values()).most_common()
    ]


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
