"""The store's interface and records.

The store is the only memory of a campaign: coordinator, ServerApps and whoever looks on
share it. Two promises carry the kill tests. A round's plan is stored before its first
message and never changes, so that a resumed round is the same round. And a round's end (its
result, its reports and the new weights) is one transaction that happens once.

A ServerApp `claim`s a campaign under a name of its own; writes of one that has been
superseded since are refused, so that two never drive one campaign.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.errors import StoreError

ENDED_STATES = ("finished", "failed", "cancelled", "undecided", "rolled-back")
LIVE_STATES = ("pending", "running", "waiting", "paused", "rolling-back")
WISHES = ("", "pause", "stop", "roll-back")


class SupersededError(StoreError):
    """Another ServerApp has claimed the campaign since; this one has to end."""


@dataclass(frozen=True)
class CampaignRecord:
    """A campaign as stored; `config` is the JSON text of its configuration.

    `driver_seen` is when its driver last said that it lives (Unix time), `wish` what an operator
    wants of it (`WISHES`), `waiting` what somebody has to decide (`begin:STAGE`, `gate:STAGE`,
    `gate:STAGE:training` and `gate:STAGE:soak`), `base` and `made` the versions (MODEL:NUMBER) that
    it began with and that came of it.
    """

    id: str
    config: str
    state: str = "pending"
    reason: str = ""
    driver: str = ""
    driver_seen: float = 0.0
    wish: str = ""
    waiting: str = ""
    author: str = ""
    created: float = 0.0
    base: str = ""
    made: str = ""


@dataclass(frozen=True)
class WeightsVersion:
    """One version of the global weights.

    `version` counts aggregations from 0; `master` is float64, little endian, in steps;
    `sha256` (hex) is that of `blob`, which devices get. `rule_state` is what the campaign's
    aggregation rule carries from round to round; nobody else reads it.
    """

    version: int
    sha256: str
    blob: bytes
    master: bytes
    rule_state: bytes = b""


@dataclass(frozen=True)
class RoundRecord:
    """A round as stored. `state` is `running`, `done` or `cancelled`."""

    number: int
    kind: str
    plan: dict[str, Any]
    state: str = "running"
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundSummary:
    """What onlookers want to know of a round without reading all of it.

    `revision` counts a campaign's writes: what has changed since has a higher one.
    """

    number: int
    kind: str
    state: str
    asked: int
    wanted: int
    accepted: int
    revision: int


@dataclass(frozen=True)
class Part:
    """Deltas of a round that left a gateway together: up to its delta number `through`, from the
    end of the part before on."""

    round: int
    gateway: str
    part: int
    through: int


@dataclass(frozen=True)
class Lease:
    """The right to task a device. `campaign` is who has it; `number` goes on the wire."""

    campaign: str
    number: int


class Store(ABC):
    """What every store does. Reads of unknown things raise `StoreError`."""

    @abstractmethod
    def create_campaign(
        self,
        campaign: str,
        config: str,
        manifests: Mapping[str, str],
        weights: WeightsVersion,
        author: str = "",
        base: str = "",
    ) -> None:
        """A new campaign with its bundles' manifests (bundle id → JSON text) and version 0.

        Raises `StoreError` where the id exists.
        """

    @abstractmethod
    def campaign(self, campaign: str) -> CampaignRecord:
        """One campaign."""

    @abstractmethod
    def campaigns(self) -> tuple[CampaignRecord, ...]:
        """All campaigns, oldest first."""

    @abstractmethod
    def campaign_page(
        self, after: str, limit: int, states: Collection[str] = ()
    ) -> tuple[CampaignRecord, ...]:
        """Campaigns, newest first, those behind the one with the id `after`; in all states, or in
        some."""

    @abstractmethod
    def campaigns_under_way(self) -> tuple[CampaignRecord, ...]:
        """Those that haven't ended, oldest first."""

    @abstractmethod
    def manifests(self, campaign: str) -> dict[str, str]:
        """Manifests of the campaign's bundles: bundle id → JSON text."""

    @abstractmethod
    def claim(self, campaign: str, driver: str) -> CampaignRecord:
        """Take over a campaign that hasn't ended; whoever held it is superseded.

        A campaign that has ended is returned as it is.
        """

    @abstractmethod
    def driver_lives(self, campaign: str, driver: str, now: float) -> CampaignRecord:
        """Note that the driver lives, and return the campaign; refused once superseded."""

    @abstractmethod
    def end_campaign(self, campaign: str, driver: str, state: str, reason: str = "") -> None:
        """Set one of `ENDED_STATES`. An empty `driver` is the operator, who may always."""

    @abstractmethod
    def set_state(
        self, campaign: str, driver: str, state: str, reason: str = "", waiting: str = ""
    ) -> None:
        """Where a campaign that hasn't ended stands, why, and what it waits for."""

    @abstractmethod
    def ask(self, campaign: str, wish: str) -> None:
        """Ask the campaign's driver for one of `WISHES`; the empty one takes a wish back.

        Raises `StoreError` where the campaign has ended: nobody would carry it out.
        """

    @abstractmethod
    def latest_weights(self, campaign: str) -> WeightsVersion:
        """The newest version."""

    @abstractmethod
    def weights(self, campaign: str, version: int) -> WeightsVersion:
        """One version."""

    @abstractmethod
    def weights_with(self, campaign: str, sha256: str) -> WeightsVersion | None:
        """The campaign's version with this digest, if it has one."""

    @abstractmethod
    def weight_digests(self, campaign: str) -> frozenset[str]:
        """The digests of all versions of the campaign."""

    @abstractmethod
    def note_made(self, campaign: str, driver: str, version: str) -> None:
        """What version (MODEL:NUMBER) came of the campaign."""

    @abstractmethod
    def reopen(self, campaign: str) -> None:
        """Let a campaign that has ended go on, to roll its devices back."""

    @abstractmethod
    def round_times(self, campaign: str, number: int) -> tuple[float, float | None]:
        """When a round began and ended (Unix time)."""

    @abstractmethod
    def begin_round(
        self, campaign: str, driver: str, number: int, kind: str, plan: Mapping[str, Any]
    ) -> RoundRecord:
        """Store a round's plan; where the round exists, return it as it was stored first.

        What it spends of its devices' privacy (`rho` of the plan's `privacy`) is in the ledger with
        it, all or nothing, and nothing of a plan whose round existed.
        """

    @abstractmethod
    def note_progress(
        self,
        campaign: str,
        driver: str,
        number: int,
        accepted: int,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """How many deltas of a running round are accepted so far, and what else is `told` of it, in
        a few kilobytes, for onlookers."""

    @abstractmethod
    def take_leases(
        self, campaign: str, driver: str, devices: Mapping[str, int]
    ) -> dict[str, Lease]:
        """Lease `devices` (name → the highest lease number that the device has seen).

        Each gets a number that is at least as high as that one, and new where the device was
        somebody else's before. A device that a running campaign has leased stays with it: look
        at `campaign` of what is returned.
        """

    @abstractmethod
    def quarantine(self, campaign: str, driver: str, gateway: str, reason: str) -> None:
        """Leave a gateway out of the campaign's further rounds; the first reason is kept."""

    @abstractmethod
    def quarantined(self, campaign: str) -> dict[str, str]:
        """Gateways in quarantine, with the reasons."""

    @abstractmethod
    def finish_round(
        self,
        campaign: str,
        driver: str,
        number: int,
        state: str,
        result: Mapping[str, Any],
        reports: Sequence[Mapping[str, Any]],
        weights: WeightsVersion | None,
    ) -> bool:
        """End a running round and store its reports and new weights, all or nothing.

        False, and nothing is written, where the round had ended already.
        """

    @abstractmethod
    def make_version(
        self, campaign: str, driver: str, weights: WeightsVersion, parts: Sequence[Part]
    ) -> None:
        """Store a version and the parts that it was made of, all or nothing.

        Raises `StoreError` where the version is there already.
        """

    @abstractmethod
    def parts(self, campaign: str) -> tuple[Part, ...]:
        """All parts that versions were made of, in their order."""

    @abstractmethod
    def round_offset(self) -> int:
        """What is added to the numbers of rounds that begin now, for gateways and devices.

        0, but in a store that was restored: there may have been rounds that it doesn't know of.
        """

    @abstractmethod
    def knows_round(self, campaign: str, on_wire: int) -> bool:
        """Whether there is a round that gateways know by this number."""

    @abstractmethod
    def raise_counters(
        self, campaign: str, driver: str, on_wire: int, counters: Mapping[str, Any]
    ) -> bool:
        """Raise counters in the result of a round that is done; False for any other round.

        `on_wire` is the number by which gateways know it.

        `counters` holds numbers, and numbers by reason. None is ever lowered, since whoever
        counts may not know of all gateways (yet).
        """

    @abstractmethod
    def round(self, campaign: str, number: int) -> RoundRecord:
        """One round."""

    @abstractmethod
    def rounds(self, campaign: str) -> tuple[RoundRecord, ...]:
        """All rounds in order, whole: for reports, not for a look now and then."""

    @abstractmethod
    def round_summaries(self, campaign: str, since: int = 0) -> tuple[RoundSummary, ...]:
        """The rounds that have changed since revision `since`, in order of their numbers."""

    @abstractmethod
    def reports(self, campaign: str, number: int) -> tuple[dict[str, Any], ...]:
        """A round's reports per device, in order of their names."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds."""


def raised(result: Mapping[str, Any], counters: Mapping[str, Any]) -> dict[str, Any]:
    """`result` with its `counters` as `Store.raise_counters` says."""
    merged = dict(result)
    for name, value in counters.items():
        if isinstance(value, Mapping):
            merged[name] = raised(merged.get(name, {}), value)
        else:
            merged[name] = max(int(merged.get(name, 0)), int(value))
    return merged
