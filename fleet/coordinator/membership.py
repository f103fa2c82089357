"""The devices of a campaign: who is meant, in which stage, who failed, who has to go back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleet.campaign import (
    CampaignConfig,
    DeviceInfo,
    Members,
    RoundKind,
    RoundPlan,
    Step,
    by_name,
    deal_stages,
    filter_values,
)
from fleet.campaign.sets import SPOILS_SETS
from fleet.campaign.stages import GATEWAY_LOST
from fleet.clock import Clock
from fleet.coordinator.private_rounds import PrivateRounds
from fleet.registry import Filter
from fleet.store import Member, Registry, RoundRecord, SqlStore, Stages
from fleet.store.stages import after_round

_MOST_DOUBLED = 60


class Membership:
    """Who takes part in one campaign, as its store has it."""

    def __init__(
        self,
        store: SqlStore,
        campaign: str,
        config: CampaignConfig,
        registry: Registry | None,
        clock: Clock,
        private: PrivateRounds,
    ) -> None:
        """With a `registry` its devices can be meant; without, whoever is at a gateway."""
        self._store = store
        self._stages = Stages(store)
        self._campaign = campaign
        self._config = config
        self._registry = registry
        self._clock = clock
        self._private = private

    def targets(self, devices: Sequence[DeviceInfo]) -> dict[str, DeviceInfo]:
        """Known devices that the campaign is for, by name."""
        known = by_name(devices)
        target = Filter.parse(self._config.target)
        if self._registry is not None:
            meant = self._registry.names(target)
            return {name: one for name, one in known.items() if name in meant}
        return {name: one for name, one in known.items() if target.matches(filter_values(one))}

    def of(
        self,
        step: Step,
        targets: Mapping[str, DeviceInfo],
        devices: Sequence[DeviceInfo],
        is_known: Callable[[str], bool],
    ) -> Members:
        """Who of the targets may take part in a stage's rounds; those that have come since join.

        `devices` are all that was heard of; `is_known`: whether there are weights with this digest.
        """
        known = self._stages.members(self._campaign)
        strata = {name: f"{one.gateway}/{one.board}" for name, one in targets.items()}
        # A driver that has just begun may not have heard of all: they keep their places.
        heard = {one.device for one in devices}
        dealt = deal_stages(
            self._config,
            {**strata, **dict.fromkeys(known.keys() - heard, "")},
            {name: one.stage for name, one in known.items()},
        )
        joined = {
            name: Member(name, stage, targets[name].current)
            for name, stage in dealt.items()
            if name not in known
        }
        if joined:
            self._stages.save_members(self._campaign, joined.values())
        known |= joined
        names = frozenset(
            name for name, one in known.items() if name in targets and one.stage <= step.stage
        )
        waiting = {name: why for name in names if (why := self._holds_back(known[name]))}
        waiting |= self._private.spent(step, names)
        own: dict[str, str] = {}
        if not self._config.trains and step.kind is RoundKind.SCORE_FIRST:
            own = {name: targets[name].current for name in names}
            strange = {one for one in set(own.values()) if not is_known(one)}
            waiting |= {
                name: f"its weights {digest[:16]}… aren't known"
                for name, digest in own.items()
                if digest in strange
            }
        return Members(names, own, waiting)

    def _holds_back(self, member: Member) -> str:
        """Why a device that failed isn't asked; empty where it is."""
        if not member.failures:
            return ""
        if member.reason in SPOILS_SETS:
            return f"{member.reason}: no set that it is in can be unmasked"
        if member.failures >= self._config.retry_of(member.reason).attempts:
            return f"failed {member.failures} times in a row: {member.reason}"
        if self._is_early(member):
            return f"failed ({member.reason}); it is asked again later"
        return ""

    def _is_early(self, member: Member) -> bool:
        """Whether it backs off still; a clock that was put back makes that no longer."""
        left = member.not_before - self._clock.wall()
        # A second for rounding.
        return 0.0 < left <= 1.0 + self._backoff_seconds(member.reason, member.failures - 1)

    def _backoff_seconds(self, reason: str, failures_before: int) -> float:
        doubled = 2.0 ** min(failures_before, _MOST_DOUBLED)
        return float(self._config.retry_of(reason).backoff_seconds * doubled)

    def backs_off(self) -> bool:
        """Whether a device waits to be asked again."""
        return any(
            one.reason not in SPOILS_SETS
            and one.failures < self._config.retry_of(one.reason).attempts
            and self._is_early(one)
            for one in self._stages.members(self._campaign).values()
        )

    def note_failures(self, plan: RoundPlan, result: Mapping[str, Any]) -> None:
        """Remember who didn't deliver, so that nobody is asked for ever."""
        reasons = {
            str(one): str(why) for one, why in result["failed"].items() if why != GATEWAY_LOST
        }
        spoilers = {str(one): why for one, why in reasons.items() if why in SPOILS_SETS}
        if result["accepted"] >= plan.wanted:
            reasons = spoilers  # the others were only asked in case that these don't answer
        known = self._stages.members(self._campaign)
        failed = {}
        for device, reason in reasons.items():
            times = known[device].failures if device in known else 0
            until = self._clock.wall() + self._backoff_seconds(reason, times)
            failed[device] = (reason, until)
        asked = [one.device for one in plan.assignments]
        reported = set(asked) - set(result["missing"]) - spoilers.keys()
        changed = after_round(known, asked, reported, failed)
        if changed:
            self._stages.save_members(self._campaign, changed)

    def to_roll_back(self, devices: Sequence[DeviceInfo]) -> dict[str, str]:
        """Devices whose current weights are of this campaign, and what each had before.

        What a gateway has heard of a device may be older than what was released to it: it has that
        until it has reported that it went back, or has something else.
        """
        digests = self._store.weight_digests(self._campaign)
        heard, released, back_again = by_name(devices), self.released(), self._back_again()
        back = {}
        for name, member in self._stages.members(self._campaign).items():
            current = heard[name].current if name in heard else ""
            is_open = name in released and name not in back_again
            if (current in digests and current != member.before) or (
                is_open and current in ("", member.before)
            ):
                back[name] = member.before
        return back

    def released(self) -> frozenset[str]:
        """Devices that were told to make the candidate their current weights."""
        return frozenset(
            assignment.device
            for one in self._records(RoundKind.RELEASE)
            for assignment in RoundPlan.from_json(one.plan).assignments
        )

    def _back_again(self) -> frozenset[str]:
        """Devices that have reported that they went back."""
        return frozenset(
            assignment.device
            for one in self._records(RoundKind.ROLL_BACK)
            if one.state == "done"
            for assignment in RoundPlan.from_json(one.plan).assignments
            if assignment.device not in one.result["missing"]
        )

    def _records(self, kind: RoundKind) -> list[RoundRecord]:
        return [
            self._store.round(self._campaign, one.number)
            for one in self._store.round_summaries(self._campaign)
            if one.kind == kind.value
        ]
