"""Who trains what in a round: target, plan per device, cohort. Pure functions.

A cohort depends on the campaign's seed, the round and the names of the eligible devices,
and on nothing else: the same devices give the same cohort in whatever order they announced
themselves, and a coordinator that was killed draws it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from fleet.campaign.answers import DeviceEntry
from fleet.campaign.config import CampaignConfig
from fleet.campaign.draws import draw
from fleet.campaign.masking import MaskedRound, Protection
from fleet.campaign.pacing import Load, delays, site_name, task_bytes
from fleet.campaign.privacy import SPENT, RoundPrivacy
from fleet.errors import BudgetSpentError, CampaignError, LeasedError
from fleet.protocol.fields import Name
from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.numbers import Personal
from fleet.registry import Filter

LEASED = "leased by another campaign"
"""Why a device isn't asked."""


class RoundKind(StrEnum):
    """What a round is for."""

    SCORE_FIRST = "score-first"
    TRAIN = "train"
    TRAIN_LOCAL = "train-local"
    SCORE_LAST = "score-last"
    RELEASE = "release"
    PERSONALIZE = "personalize"
    SCORE_AGAIN = "score-again"
    ROLL_BACK = "roll-back"

    @property
    def action(self) -> str:
        """What devices are told to do."""
        if self in (RoundKind.RELEASE, RoundKind.ROLL_BACK):
            return "release"
        training = (RoundKind.TRAIN, RoundKind.TRAIN_LOCAL, RoundKind.PERSONALIZE)
        return "train" if self in training else "score"


class Step(NamedTuple):
    """A round of a campaign's schedule; a stage's training rounds are counted from 1."""

    number: int
    kind: RoundKind
    stage: int = 0
    training_round: int = 0


class DeviceInfo(DeviceEntry):
    """What a gateway says about a device (docs/specification/gateway.md, `hello`)."""

    gateway: Name

    @classmethod
    def from_hello(cls, gateway: str, entry: Mapping[str, Any]) -> DeviceInfo:
        """The entry of a `hello` reply; `AnswerError` where a field is missing or wrong."""
        return cls.parse(gateway, {**entry, "gateway": gateway})


@dataclass(frozen=True)
class Assignment:
    """One device's part in a round; `plan_reason` says why it is this plan and no larger one.

    `train_samples` is what the device had announced, `lease` the number that its task carries,
    `weights` the version that it begins with, where that is another than the round's,
    `delay_seconds` the time from the round's start until the task goes out, `part` the set of its
    plan that it hides in.
    """

    device: str
    gateway: str
    bundle: str
    plan: str
    plan_reason: str = ""
    train_samples: int = 0
    lease: int = 0
    weights: str = ""
    delay_seconds: float = 0.0
    part: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """All that a round is, fixed before its first message; what the store keeps of it.

    Gateways and devices know it by its number plus `offset` (`Store.round_offset`).
    """

    number: int
    kind: RoundKind
    seed: int
    weights: str
    wanted: int
    assignments: tuple[Assignment, ...]
    skipped: dict[str, str]
    targets: dict[str, int]
    stage: int = 0
    training_round: int = 0
    offset: int = 0
    personal: int = 0
    masks: MaskedRound | None = None
    privacy: RoundPrivacy | None = None

    @property
    def on_wire(self) -> int:
        """The number by which gateways and devices know it."""
        return self.number + self.offset

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries and lists."""
        return asdict(self)

    @property
    def protection(self) -> Protection:
        """What its devices do beside masking."""
        return self.privacy.protection if self.privacy else Protection()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RoundPlan:
        """The inverse of `to_json`."""
        fields = dict(data)
        fields["kind"] = RoundKind(fields["kind"])
        fields["assignments"] = tuple(Assignment(**one) for one in fields["assignments"])
        if fields.get("masks") is not None:
            fields["masks"] = MaskedRound.from_json(fields["masks"])
        if fields.get("privacy"):
            fields["privacy"] = RoundPrivacy(**fields["privacy"])
        return cls(**fields)

    def gateways(self) -> tuple[str, ...]:
        """The gateways that have a part in this round, in order of name."""
        return tuple(sorted({one.gateway for one in self.assignments}))

    def seconds(self, deadline_seconds: float) -> float:
        """How long it takes at most: each device has the deadline from its task on."""
        return deadline_seconds + max((one.delay_seconds for one in self.assignments), default=0.0)


def schedule(config: CampaignConfig) -> tuple[Step, ...]:
    """Every round, in order: per stage scores of the base, training, scores of the candidate, its
    release, scores once more after some time, and what devices do with it for themselves. Which of
    them there are is the campaign's."""
    steps: list[Step] = []
    for stage, of in enumerate(config.stages):
        kinds: list[RoundKind] = []
        is_gated = bool(of.gates)
        if is_gated or (config.trains and config.score_first):
            kinds.append(RoundKind.SCORE_FIRST)
        if config.trains:
            kinds += [RoundKind.TRAIN] * config.rounds
        if config.kind == "personalize":
            kinds += [RoundKind.TRAIN_LOCAL] * config.personalize.local_rounds
        if is_gated or config.kind == "evaluate" or config.last_round == "score":
            kinds.append(RoundKind.SCORE_LAST)
        if config.kind != "evaluate" and config.last_round == "release":
            kinds.append(RoundKind.RELEASE)
            if is_gated and of.soak_seconds:
                kinds.append(RoundKind.SCORE_AGAIN)
        if config.kind == "personalize":
            kinds += [RoundKind.PERSONALIZE] * config.personalize.tunings
        trained = 0
        for kind in kinds:
            trained += kind is RoundKind.TRAIN
            # A round 0 is one that comes before the first training.
            number = len(steps) + (steps[0].number if steps else kind is not RoundKind.SCORE_FIRST)
            steps.append(Step(int(number), kind, stage, trained))
    return tuple(steps)


def personal_of(config: CampaignConfig, kind: RoundKind) -> Personal:
    """What a round of this kind does with personal tensors."""
    if config.kind != "personalize":
        return Personal.NOTHING
    match kind:
        case RoundKind.TRAIN:
            return config.personalize.trains_with
        case RoundKind.TRAIN_LOCAL:
            return Personal.LOCAL
        case RoundKind.PERSONALIZE:
            return Personal.ALONE
        case RoundKind.ROLL_BACK:
            return Personal.NOTHING  # a release lets devices look at what they have anyway
        case _:
            return Personal.BESIDE


def round_seed(seed: int, number: int) -> int:
    """Seed of a round's tasks, 32 bits."""
    return draw("tinyfleet-round-seed", seed, number) & 0xFFFFFFFF


def deal_stages(
    config: CampaignConfig, strata: Mapping[str, str], known: Mapping[str, int]
) -> dict[str, int]:
    """The stage in which each device of `strata` (name → gateway and board) takes part first.

    Those that have one in `known` keep it. A stage's devices are spread evenly over strata and
    drawn by the seed inside of them; whoever isn't reached by the last stage gets none.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name, stratum in strata.items():
        drawn = draw("tinyfleet-stage", config.seed, name)
        groups.setdefault(stratum, []).append((drawn, name))
    places: list[tuple[float, int, str]] = []
    for members in groups.values():
        members.sort()
        places += [
            ((rank + 0.5) / len(members), drawn, name) for rank, (drawn, name) in enumerate(members)
        ]
    dealt = {name: stage for name, stage in known.items() if name in strata}
    waiting = [name for _, _, name in sorted(places) if name not in dealt]
    for stage, of in enumerate(config.stages):
        if of.devices is not None:
            size = min(of.devices, len(strata))
        else:
            size = math.ceil((of.share or 1.0) * len(strata) - 1e-9)
        room = size - sum(1 for other in dealt.values() if other <= stage)
        taken, waiting = waiting[: max(0, room)], waiting[max(0, room) :]
        dealt.update(dict.fromkeys(taken, stage))
    return dealt


def select_cohort(seed: int, number: int, names: Iterable[str], size: int) -> tuple[str, ...]:
    """`size` of the names (all where there are fewer), sorted: those that draw lowest."""
    drawn = sorted((draw("tinyfleet-cohort", seed, number, name), name) for name in set(names))
    return tuple(sorted(name for _, name in drawn[:size]))


def choose_plan(
    device: DeviceInfo, plans: Sequence[PlanEntry], config: CampaignConfig
) -> tuple[PlanEntry | None, str]:
    """The largest plan that the device can carry, or None; and why that one.

    Its pool must fit the announced free SRAM; all but the smallest fitting plan also need
    `min_battery_percent`, and the delta on the link within its share of the deadline. The
    reason says what keeps the device from the next larger plan.
    """
    if not plans:
        return None, "the bundle has none of the campaign's plans"
    # A charge that nobody knows limits nothing, nor does one that something is filling up.
    known = device.battery_percent
    charge = 100 if known is None or device.charging else known
    if charge < config.min_battery_to_take_part:
        return None, (f"battery {charge} % is below {config.min_battery_to_take_part} %")
    by_size = sorted(plans, key=lambda plan: (plan.delta_values, plan.pool_bytes, plan.id))
    chosen = None
    obstacle = ""
    for plan in by_size:
        problem = _obstacle(device, charge, plan, config, is_smallest=chosen is None)
        if not problem:
            chosen, obstacle = plan, ""
        elif chosen is not None and not obstacle:
            obstacle = problem
    if chosen is None:
        smallest = min(plan.pool_bytes for plan in plans)
        return None, (
            f"{device.free_sram_bytes} bytes of free SRAM, the smallest plan needs {smallest}"
        )
    return chosen, obstacle or "no larger plan"


def _obstacle(
    device: DeviceInfo, charge: int, plan: PlanEntry, config: CampaignConfig, is_smallest: bool
) -> str:
    """What keeps a device from a plan; empty where nothing does."""
    if plan.pool_bytes > device.free_sram_bytes:
        return f"{plan.name} needs {plan.pool_bytes} of {device.free_sram_bytes} bytes of free SRAM"
    if is_smallest:
        return ""
    if charge < config.min_battery_percent:
        return f"battery {charge} % is below the {config.min_battery_percent} % for {plan.name}"
    seconds = config.uplink_share * config.deadline_seconds
    bits = plan.delta_values * config.delta_bits_per_value
    if bits > seconds * device.link_bits_per_second:
        return (
            f"{plan.name} takes about {bits / 1000:,.0f} kbit up, more than {seconds:g} s "
            f"at {device.link_bits_per_second} bit/s"
        )
    return ""


def _silence(device: DeviceInfo, config: CampaignConfig) -> str:
    """Why a device is taken for one that can't be reached; empty where it isn't."""
    if not device.online:
        return "offline"
    if device.stale:
        return "not heard of since its gateway reached the broker"
    if device.last_seen == 0.0:
        return (
            "its gateway has only what the broker kept of it; a device that is there says so "
            "within 15 minutes"
        )
    # A device stays away for up to an eighth longer than it was told.
    limit = config.max_seen_age_seconds + config.check_in_seconds * 9 / 8
    if device.seen_age_seconds > limit:
        return f"last heard of {device.seen_age_seconds:,.0f} s ago, more than {limit:,.0f} s"
    return ""


def _lack_of_samples(device: DeviceInfo, kind: RoundKind) -> str:
    """What a device would decline a round of this kind for; releases need no sample."""
    if kind.action == "train" and device.train_samples == 0:
        return "no training samples"
    if kind.action != "release" and device.held_out_samples == 0:
        return "no held-out samples"
    return ""


def filter_values(device: DeviceInfo) -> dict[str, Any]:
    """The fields that a filter can be about, as far as a gateway knows them."""
    return device.model_dump(exclude_none=True, exclude={"stale", "last_seen"})


@dataclass(frozen=True)
class Members:
    """Devices that a round may ask.

    `weights`: what some of them begin with instead of the round's version. `waiting`: those of them
    that it may not ask now, with reasons.
    """

    names: frozenset[str]
    weights: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)


def by_name(devices: Iterable[DeviceInfo]) -> dict[str, DeviceInfo]:
    """Each device once, in order of names.

    One known to two gateways belongs to the one where it is online, then to the gateway first in
    the alphabet.
    """
    found: dict[str, DeviceInfo] = {}
    for device in sorted(devices, key=lambda one: (one.device, not one.online, one.gateway)):
        found.setdefault(device.device, device)
    return found


def eligible(
    config: CampaignConfig,
    devices: Iterable[DeviceInfo],
    manifests: Mapping[str, Manifest],
    members: Members | None = None,
    kind: RoundKind = RoundKind.TRAIN,
) -> tuple[dict[str, Assignment], dict[str, str]]:
    """Assignments of all devices that could take part in such a round, and why the others can't.

    Without `members` whoever matches the campaign's target by what its gateway says.
    """
    target = Filter.parse(config.target)
    assignments: dict[str, Assignment] = {}
    skipped: dict[str, str] = {}
    for device in by_name(devices).values():
        if members is None:
            if not target.matches(filter_values(device)):
                continue
        elif device.device not in members.names:
            continue
        elif device.device in members.waiting:
            skipped[device.device] = members.waiting[device.device]
            continue
        manifest = manifests.get(device.bundle)
        silence = _silence(device, config)
        if silence:
            skipped[device.device] = silence
        elif manifest is None:
            skipped[device.device] = f"bundle {device.bundle[:16]} isn't part of the campaign"
        elif lack := _lack_of_samples(device, kind):
            skipped[device.device] = lack
        elif config.charging_only and device.charging is False:
            skipped[device.device] = "runs on its battery"
        else:
            plans = [plan for plan in manifest.plans if config.allows(plan)]
            plan, reason = choose_plan(device, plans, config)
            if plan is None:
                skipped[device.device] = reason
            else:
                assignments[device.device] = Assignment(
                    device.device,
                    device.gateway,
                    device.bundle,
                    plan.id,
                    reason,
                    device.train_samples,
                )
    return assignments, skipped


def split(wanted: int, assignments: Iterable[Assignment]) -> dict[str, int]:
    """`wanted` deltas dealt to gateways by how many devices of theirs were selected.

    Largest remainders first, at least one each, never more than a gateway's devices.
    """
    selected: dict[str, int] = {}
    for one in assignments:
        selected[one.gateway] = selected.get(one.gateway, 0) + 1
    total = sum(selected.values())
    exact = {gateway: wanted * count / total for gateway, count in selected.items()}
    targets = {gateway: max(1, math.floor(value)) for gateway, value in exact.items()}
    by_remainder = sorted(exact, key=lambda gateway: math.floor(exact[gateway]) - exact[gateway])
    for gateway in by_remainder:
        if sum(targets.values()) < wanted and targets[gateway] < selected[gateway]:
            targets[gateway] += 1
    return targets


def plan_round(
    config: CampaignConfig,
    number: int,
    kind: RoundKind,
    devices: Iterable[DeviceInfo],
    manifests: Mapping[str, Manifest],
    weights: str,
    leases: Mapping[str, int],
    members: Members | None = None,
    stage: int = 0,
    training_round: int = 0,
    sites: Mapping[str, str] | None = None,
    room: int | None = None,
    offset: int = 0,
) -> RoundPlan:
    """The round's plan. Scoring rounds take every eligible device, without over-selection.

    `leases` are the lease numbers of the devices that the campaign may task; `members` those that
    may take part at all (all that match the target where None). `training_round`
    counts those of the stage; `sites` are those of gateways, as far as they are known; `room` is
    for how many devices there is some, where others are at work; `offset` that of
    `RoundPlan`. Raises `CampaignError` where no device is eligible (`LeasedError` where others have
    them, `BudgetSpentError` where those left have no privacy to spend), or tasks would be held back
    for too long.
    """
    assignments, skipped = eligible(config, devices, manifests, members, kind)
    ready = len(assignments)
    for name in assignments.keys() - leases.keys():
        del assignments[name]
        skipped[name] = LEASED
    if not assignments:
        spent = list(skipped.values()).count(SPENT)
        if spent and not ready:
            raise BudgetSpentError(number, 0, spent)
        error = LeasedError if ready else CampaignError
        why = "; ".join(f"{device}: {reason}" for device, reason in list(skipped.items())[:5])
        raise error(f"round {number}: no device can take part ({why or 'none matches the target'})")
    if kind is RoundKind.TRAIN:
        wanted = most_at_once(config, len(assignments)) if room is None else room
        wanted = min(wanted, len(assignments))
        asked = math.ceil(wanted * (1 + config.over_selection))
        cohort = select_cohort(config.seed, number, assignments, asked)
    else:
        cohort = tuple(sorted(assignments))
        wanted = len(cohort)
    asked_now = [assignments[name] for name in cohort]
    held_back = delays(config, number, loads_of(config, kind, manifests, sites or {}, asked_now))
    chosen = tuple(
        replace(
            assignments[name],
            lease=leases[name],
            weights=members.weights.get(name, "") if members else "",
            delay_seconds=held_back[name],
        )
        for name in cohort
    )
    return RoundPlan(
        number=number,
        kind=kind,
        seed=round_seed(config.seed, number + offset),
        weights=weights,
        wanted=wanted,
        assignments=chosen,
        skipped=skipped,
        targets=split(wanted, chosen),
        stage=stage,
        training_round=training_round,
        offset=offset,
        personal=int(personal_of(config, kind)),
    )


def most_at_once(config: CampaignConfig, ready: int) -> int:
    """How many of so many devices a training round is for, or may work at once.

    Masked rounds are for so many at least that they can hide in each other.
    """
    if config.cohort_size:
        return config.cohort_size
    return max(math.ceil(config.cohort_share * ready), config.least_at_once)


def loads_of(
    config: CampaignConfig,
    kind: RoundKind,
    manifests: Mapping[str, Manifest],
    sites: Mapping[str, str],
    assignments: Iterable[Assignment],
) -> list[Load]:
    """What devices with these assignments bring to the links of their gateways' `sites`."""
    return [
        Load(
            one.device,
            site_name(one.gateway, sites.get(one.gateway)),
            task_bytes(config, manifests[one.bundle], one.plan, trains=kind is RoundKind.TRAIN),
        )
        for one in assignments
    ]
