"""The sets of masked rounds: who hides in which, and what their sums come to. No I/O.

Bytes and rules are those of masking.md: gateways' sums modulo 2^bits are added up, the unmaskers'
sums of streams taken away, and what is left is read as numbers that such devices can have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.campaign.answers import CollectAnswer, FoldPart, Report
from fleet.campaign.config import CampaignConfig
from fleet.campaign.masking import (
    TOO_FEW,
    MaskedRound,
    Protection,
    deal,
    mask_parameters,
    set_sizes,
)
from fleet.campaign.planning import (
    LEASED,
    Assignment,
    DeviceInfo,
    RoundKind,
    RoundPlan,
    by_name,
    split,
)
from fleet.campaign.privacy import SPENT
from fleet.campaign.round_machine import RoundOutcome
from fleet.errors import BudgetSpentError, CampaignError, LeasedError, MaskError
from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.mask_requests import BROKEN_SEAL, UNKNOWN_DEVICE
from fleet.protocol.masking import (
    NONCE_BYTES,
    SEAL_BYTES,
    MaskParameters,
    Words,
    add,
    centred,
)

_TOLD = 5
"""So many reasons why devices aren't asked a message has."""

# ---- before a round ------------------------------------------------------------------


def hide(
    config: CampaignConfig,
    plan: RoundPlan,
    devices: Iterable[DeviceInfo],
    manifests: Mapping[str, Manifest],
    unmaskers: Sequence[bytes],
    protection: Protection | None = None,
) -> RoundPlan:
    """A round's plan with its devices dealt to sets; the same plan where nothing is masked.

    A device whose update plan too few others train gets the next smaller one that it can carry and
    enough train; where there is none it isn't asked. `unmaskers` are the public keys that seeds
    are sealed for. Raises `CampaignError` where nobody can hide: `LeasedError` where others have
    devices of it, `BudgetSpentError` where those would be enough that have spent their privacy.
    """
    if config.masking is None or plan.kind is not RoundKind.TRAIN:
        return plan
    protection = protection or Protection()
    least = max(config.masking.least_devices, protection.least_devices)
    # Of those that are asked on top some deliver too late, of whatever set.
    wanted = max(math.ceil(config.masking.wanted_devices * (1 + config.over_selection)), least)
    rule = config.aggregation.sets()
    known = by_name(devices)
    groups: dict[str, list[Assignment]] = {}
    for one in plan.assignments:
        groups.setdefault(one.plan, []).append(one)
    waiting = {id: _entry(manifests, group) for id, group in groups.items()}
    kept: list[Assignment] = []
    skipped = dict(plan.skipped)
    sizes_of: dict[str, list[int]] = {}
    while waiting:
        largest = max(waiting, key=lambda id: (waiting[id].delta_values, id))
        del waiting[largest]
        group = groups.pop(largest)
        sizes = set_sizes(len(group), least, wanted, rule)
        sizes_of[largest] = sizes
        parts = deal(plan.seed, [one.device for one in group], sizes)
        for one in group:
            if one.device in parts:
                kept.append(replace(one, part=parts[one.device]))
                continue
            smaller = None if sizes else _next_smaller(config, manifests, known, one)
            if smaller is None:
                skipped[one.device] = TOO_FEW
                continue
            name = manifests[one.bundle].plan(one.plan).name
            reason = f"{len(group)} devices train {name}, too few to hide in"
            groups.setdefault(smaller.id, []).append(
                replace(one, plan=smaller.id, plan_reason=reason)
            )
            waiting.setdefault(smaller.id, smaller)
    if not kept:
        asked, whys = len(plan.assignments), Counter(plan.skipped.values())
        if LEASED not in whys and whys[SPENT] and asked + whys[SPENT] >= rule.least * least:
            raise BudgetSpentError(plan.number, asked, whys[SPENT])
        # Those that others have may come back, and then they are enough.
        error = LeasedError if LEASED in whys else CampaignError
        others = "; ".join(f"{count}: {why}" for why, count in whys.most_common(_TOLD))
        raise error(
            f"round {plan.number}: {asked} devices are too few to hide in each other: a set of one "
            f"update plan has {least} at least (masking.least_devices), and "
            f"{config.aggregation.rule} wants {rule.least} of them; of the others that are meant "
            f"can't take part {others or 'none'}"
        )
    kept.sort(key=lambda one: one.device)
    try:
        parameters = mask_parameters(
            config.masking, max(map(max, filter(None, sizes_of.values()))), protection
        )
    except MaskError as error:
        raise CampaignError(f"round {plan.number}: {error}") from None
    keys = tuple(key.hex() for key in unmaskers)
    total = min(plan.wanted, len(kept))
    return replace(
        plan,
        assignments=tuple(kept),
        skipped=skipped,
        wanted=total,
        targets=split(total, kept),
        masks=MaskedRound(parameters, keys, max(map(len, sizes_of.values()))),
    )


def _entry(manifests: Mapping[str, Manifest], group: Sequence[Assignment]) -> PlanEntry:
    return manifests[group[0].bundle].plan(group[0].plan)


def _next_smaller(
    config: CampaignConfig,
    manifests: Mapping[str, Manifest],
    known: Mapping[str, DeviceInfo],
    one: Assignment,
) -> PlanEntry | None:
    """The largest update plan below a device's that it can carry as well."""
    manifest = manifests[one.bundle]
    own = manifest.plan(one.plan)
    below = [
        other
        for other in manifest.plans
        if (other.delta_values, other.id) < (own.delta_values, own.id)
        and config.allows(other)
        and other.pool_bytes <= known[one.device].free_sram_bytes
    ]
    return max(below, key=lambda other: (other.delta_values, other.id), default=None)


# ---- what gateways answer ------------------------------------------------------------


@dataclass(frozen=True)
class MaskedSet:
    """Devices of one update plan and part whose masked values were added up over all gateways.

    `values` are modulo 2^bits; `members` ascend by device.
    """

    plan: str
    part: int
    members: tuple[Report, ...]
    values: Words


def problem_with_masked(
    manifests: Mapping[str, Manifest], plan: RoundPlan, gateway: str, answer: CollectAnswer
) -> str:
    """Why a gateway can't have got these sums from its devices; empty where it can.

    Masked values can be anything: what shows is another number of devices, or of values.
    """
    assert plan.masks is not None
    mine = {one.device: one for one in plan.assignments if one.gateway == gateway}
    counted: dict[tuple[str, int], int] = {}
    for report in answer.reports:
        of = mine[report.device]
        if report.plan != of.plan:
            return f"{report.device} reports plan {report.plan[:16]}…, its task says another"
        if not report.train_samples:
            continue
        seals = len(plan.masks.unmaskers) * SEAL_BYTES
        if len(report.nonce) != NONCE_BYTES or len(report.seals) != seals:
            return f"nonce and seals of {report.device} aren't whole"
        place = (of.plan, of.part)
        counted[place] = counted.get(place, 0) + 1
    for plan_id, fold in (answer.sums or {}).items():
        assignment = next((one for one in mine.values() if one.plan == plan_id), None)
        if assignment is None:
            return f"sums plan {plan_id[:16]}…, which it has no task for"
        if len(fold) != plan.masks.parts:
            return f"{len(fold)} sums of plan {plan_id[:16]}…, {plan.masks.parts} are wanted"
        size = plan.masks.parameters.values(_entry(manifests, [assignment]).delta_values)
        for part, one in enumerate(fold):
            reported = counted.pop((plan_id, part), 0)
            problem = _problem_with_sum(one, reported, size, plan.masks.parameters.bits)
            if problem:
                return f"part {part} of plan {plan_id[:16]}…: {problem}"
    if counted:
        return "reports of devices without a sum that they are in"
    return ""


def _problem_with_sum(one: FoldPart, reported: int, size: int, bits: int) -> str:
    if not one.devices == one.weight == reported:
        return f"a sum of {one.devices} devices of weight {one.weight}, {reported} reported"
    if not one.devices:
        return ""
    if len(one.values) != 8 * size:
        return f"{len(one.values)} bytes instead of 8 for each of {size} values"
    values = np.frombuffer(one.values, "<i8")
    if values.size and (values.min() < 0 or values.max() >> bits):
        return f"values that aren't modulo 2^{bits}"
    return ""


def masked_sets(plan: RoundPlan, answers: Mapping[str, CollectAnswer]) -> list[MaskedSet]:
    """The sets of a round, over all gateways, those that nobody delivered for included.

    Answers have passed `problem_with_masked`.
    """
    assert plan.masks is not None
    bits = plan.masks.parameters.bits
    part_of = {one.device: one.part for one in plan.assignments}
    members: dict[tuple[str, int], list[Report]] = {
        (one.plan, one.part): [] for one in plan.assignments
    }
    sums: dict[tuple[str, int], Words] = {}
    for _, answer in sorted(answers.items()):
        for report in answer.reports:
            if report.train_samples:
                members[report.plan, part_of[report.device]].append(report)
        for plan_id, fold in (answer.sums or {}).items():
            for part, one in enumerate(fold):
                if one.devices:
                    values = np.frombuffer(one.values, "<i8").astype(np.uint32)
                    place = (plan_id, part)
                    sums[place] = add(sums[place], values, bits) if place in sums else values
    return [
        MaskedSet(
            *place,
            tuple(sorted(found, key=lambda one: one.device)),
            sums.get(place, np.zeros(0, np.uint32)),
        )
        for place, found in sorted(members.items())
    ]


# ---- what comes of them --------------------------------------------------------------

FEW_DELIVERED = "too-few"
BEYOND_RANGE = "beyond-range"
UNMASKER_AWAY = "unmasker-away"
SPOILS_SETS = (BROKEN_SEAL, UNKNOWN_DEVICE)
"""What devices are left out for from then on: every set that they are in counts nothing."""


@dataclass(frozen=True)
class SetOutcome:
    """What came of a set: a sum that counts, or why it doesn't.

    `values`: Σ of the devices' values, without that for the norm, which is `norm_sum`; None where
    the set counts nothing. `guilty`: devices that are the reason.
    """

    plan: str
    part: int
    devices: tuple[str, ...]
    values: NDArray[np.int64] | None = None
    norm_sum: int = 0
    why: str = ""
    guilty: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a round's result has it."""
        return {
            "plan": self.plan,
            "part": self.part,
            "devices": len(self.devices),
            "counted": self.values is not None,
            "why": self.why,
        }


def has_too_few(of: MaskedSet, parameters: MaskParameters) -> bool:
    """Whether nobody may be asked for a set's sum."""
    return len(of.members) < parameters.least_devices


def not_counted(of: MaskedSet, why: str, guilty: Iterable[str] = ()) -> SetOutcome:
    """A set that counts nothing."""
    names = tuple(one.device for one in of.members)
    return SetOutcome(of.plan, of.part, names, why=why, guilty=tuple(guilty))


def unmasked(of: MaskedSet, masks: Sequence[Words], parameters: MaskParameters) -> SetOutcome:
    """The sum of a set, `masks` being each unmasker's sum of streams of exactly its devices.

    One that these devices can't have (a gateway that counted others, or changed values; a device
    that doesn't clip) counts nothing.
    """
    bits = parameters.bits
    total = of.values
    for one in masks:
        total = (total - one) & np.uint32((1 << bits) - 1)
    values = centred(total, bits)
    devices = len(of.members)
    length = float(np.linalg.norm(values.astype(np.float64)))
    if length > parameters.longest_sum(devices, values.size) or (
        values.size and int(np.abs(values).max()) > parameters.largest_sum(devices)
    ):
        return not_counted(of, BEYOND_RANGE)
    names = tuple(one.device for one in of.members)
    if parameters.norm_share:
        return SetOutcome(of.plan, of.part, names, values[:-1], int(values[-1]))
    return SetOutcome(of.plan, of.part, names, values)


def differences(
    now: Sequence[SetOutcome], before: Sequence[tuple[str, Sequence[str]]]
) -> list[int | None]:
    """By how many devices each set differs from the nearest of `before` (plan, devices).

    Two sums of sets that differ by few devices say something of these few: that is what a round
    beside the one before gives away. None where there is none of the plan.
    """
    found: list[int | None] = []
    for one in now:
        mine = set(one.devices)
        others = [len(mine ^ set(devices)) for plan, devices in before if plan == one.plan]
        found.append(min(others, default=None))
    return found


@dataclass(frozen=True)
class Unmasked:
    """What came of a masked round: each set, and the outcome that they were made of.

    `differs_by` has for each set what `differences` tells of the training round before.
    """

    outcome: RoundOutcome
    sets: tuple[SetOutcome, ...]
    differs_by: tuple[int | None, ...]

    @property
    def guilty(self) -> dict[str, str]:
        """Devices whose sets count nothing because of them, with the reason."""
        return {device: one.why for one in self.sets for device in one.guilty}

    def figures(self, chosen: str) -> dict[str, Any]:
        """What a round's result says of it; `chosen` is what the rule did with its sets."""
        counted = [one for one in self.sets if one.values is not None]
        return {
            "sets": [
                {**one.to_json(), "differs_by": differs}
                for one, differs in zip(self.sets, self.differs_by, strict=True)
            ],
            "counted": sum(len(one.devices) for one in counted),
            "rule": chosen if counted else "",
        }
