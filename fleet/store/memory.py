"""A store in memory, for tests and for campaigns of one process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fleet.errors import StoreError
from fleet.store.base import (
    ENDED_STATES,
    CampaignRecord,
    RoundRecord,
    Store,
    SupersededError,
    WeightsVersion,
    raised,
)


@dataclass
class _Campaign:
    record: CampaignRecord
    manifests: dict[str, str]
    weights: dict[int, WeightsVersion]
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounds: dict[int, RoundRecord] = field(default_factory=dict)
    reports: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)


class MemoryStore(Store):
    """See `Store`."""

    def __init__(self) -> None:
        """An empty store."""
        self._campaigns: dict[str, _Campaign] = {}
        self._lock = threading.RLock()

    def _find(self, campaign: str, driver: str = "") -> _Campaign:
        found = self._campaigns.get(campaign)
        if found is None:
            raise StoreError(f"the store has no campaign {campaign}")
        if driver and found.record.driver != driver:
            raise SupersededError(
                f"campaign {campaign} was taken over by {found.record.driver or 'the operator'}"
            )
        return found

    def create_campaign(
        self, campaign: str, config: str, manifests: Mapping[str, str], weights: WeightsVersion
    ) -> None:
        """See `Store`."""
        with self._lock:
            if campaign in self._campaigns:
                raise StoreError(f"the store has a campaign {campaign} already; choose another id")
            self._campaigns[campaign] = _Campaign(
                CampaignRecord(campaign, config), dict(manifests), {weights.version: weights}
            )

    def campaign(self, campaign: str) -> CampaignRecord:
        """See `Store`."""
        with self._lock:
            return self._find(campaign).record

    def campaigns(self) -> tuple[CampaignRecord, ...]:
        """See `Store`."""
        with self._lock:
            return tuple(one.record for one in self._campaigns.values())

    def manifests(self, campaign: str) -> dict[str, str]:
        """See `Store`."""
        with self._lock:
            return dict(self._find(campaign).manifests)

    def claim(self, campaign: str, driver: str) -> CampaignRecord:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign)
            if found.record.state not in ENDED_STATES:
                found.record = replace(found.record, state="running", driver=driver)
            return found.record

    def driver_lives(self, campaign: str, driver: str, now: float) -> CampaignRecord:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign, driver)
            found.record = replace(found.record, driver_seen=now)
            return found.record

    def end_campaign(self, campaign: str, driver: str, state: str, reason: str = "") -> None:
        """See `Store`."""
        if state not in ENDED_STATES:
            raise StoreError(f"{state} isn't a state in which a campaign ends")
        with self._lock:
            found = self._find(campaign, driver)
            if found.record.state not in ENDED_STATES:
                found.record = replace(found.record, state=state, reason=reason)

    def request_stop(self, campaign: str) -> None:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign)
            found.record = replace(found.record, stop_requested=True)

    def latest_weights(self, campaign: str) -> WeightsVersion:
        """See `Store`."""
        with self._lock:
            versions = self._find(campaign).weights
            return versions[max(versions)]

    def weights(self, campaign: str, version: int) -> WeightsVersion:
        """See `Store`."""
        with self._lock:
            versions = self._find(campaign).weights
            if version not in versions:
                raise StoreError(f"campaign {campaign} has no weights version {version}")
            return versions[version]

    def save_devices(self, campaign: str, devices: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Store`."""
        with self._lock:
            known = self._find(campaign).devices
            known.update({name: dict(fields) for name, fields in devices.items()})

    def devices(self, campaign: str) -> dict[str, dict[str, Any]]:
        """See `Store`."""
        with self._lock:
            return copy.deepcopy(self._find(campaign).devices)

    def begin_round(
        self, campaign: str, driver: str, number: int, kind: str, plan: Mapping[str, Any]
    ) -> RoundRecord:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign, driver)
            if number not in found.rounds:
                found.rounds[number] = RoundRecord(number, kind, copy.deepcopy(dict(plan)))
            return copy.deepcopy(found.rounds[number])

    def note_progress(
        self, campaign: str, driver: str, number: int, progress: Mapping[str, Any]
    ) -> None:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign, driver)
            record = self._round(found, number)
            found.rounds[number] = replace(record, progress=copy.deepcopy(dict(progress)))

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
        """See `Store`."""
        with self._lock:
            found = self._find(campaign, driver)
            record = self._round(found, number)
            if record.state != "running":
                return False
            if weights is not None:
                if weights.version in found.weights:
                    raise StoreError(
                        f"campaign {campaign} has weights version {weights.version} already"
                    )
                found.weights[weights.version] = weights
            found.reports[number] = {str(one["device"]): dict(one) for one in reports}
            found.rounds[number] = replace(record, state=state, result=copy.deepcopy(dict(result)))
            return True

    def raise_counters(
        self, campaign: str, driver: str, number: int, counters: Mapping[str, Any]
    ) -> bool:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign, driver)
            record = found.rounds.get(number)
            if record is None or record.state != "done":
                return False
            found.rounds[number] = replace(record, result=raised(record.result, counters))
            return True

    def _round(self, found: _Campaign, number: int) -> RoundRecord:
        if number not in found.rounds:
            raise StoreError(f"campaign {found.record.id} has no round {number}")
        return found.rounds[number]

    def round(self, campaign: str, number: int) -> RoundRecord:
        """See `Store`."""
        with self._lock:
            return copy.deepcopy(self._round(self._find(campaign), number))

    def rounds(self, campaign: str) -> tuple[RoundRecord, ...]:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign).rounds
            return tuple(copy.deepcopy(found[number]) for number in sorted(found))

    def reports(self, campaign: str, number: int) -> tuple[dict[str, Any], ...]:
        """See `Store`."""
        with self._lock:
            found = self._find(campaign).reports.get(number, {})
            return tuple(dict(found[name]) for name in sorted(found))

    def close(self) -> None:
        """See `Store`."""
