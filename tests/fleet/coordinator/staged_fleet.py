"""Sixteen devices at two gateways, four of each board, and campaigns over them in stages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.campaign import CampaignConfig, RoundPlan
from fleet.clock import VirtualClock
from fleet.coordinator.driver import CampaignDriver, new_campaign
from fleet.store import ENDED_STATES, Models, SqlStore, Stages
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.direct_transport import DirectTransport
from tests.fleet.coordinator.plain_gateway import PlainGateway

MANIFESTS = small_model.manifest_texts("a", "b")
SCORES: dict[str, Any] = {"gate": "score", "most_drop": 0.2}
FAILURES: dict[str, Any] = {"gate": "failures", "most": 0.2}
CANARY: dict[str, Any] = {"name": "canary", "share": 0.25, "gates": [SCORES]}
HALF: dict[str, Any] = {"name": "half", "share": 0.5, "gates": [SCORES]}
ALL: dict[str, Any] = {"name": "all", "share": 1.0, "gates": [SCORES]}


def variant(number: int) -> bytes:
    """Weights of the small model that differ from all others with another number."""
    blob = bytearray(small_model.blob())
    blob[0] = (blob[0] + number) % 256
    return bytes(blob)


def digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


class StagedFleet:
    """Devices with the weights of versions 1, 2 and 3 of the model `m`, and their scores.

    `right` is the share of right answers by weights (digest), 0.9 where nothing is said.
    """

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.store = SqlStore(clock=self.clock)
        self.models = Models(self.store)
        for text in MANIFESTS.values():
            self.models.import_bundle("m", text, small_model.blob(), "test")
        for number in (1, 2):
            self.models.add_version("m", variant(number), 1, "test", "released")
        self.right: dict[str, float] = {}
        self.unlike_base = 0.9
        self.held_out = 1000
        self.gateways: dict[str, PlainGateway] = {}
        for name in ("g1", "g2"):
            devices = [
                small_model.device_entry(
                    f"{name}-{index}", "ab"[index % 2], current=digest(variant(index % 3))
                )
                for index in range(8)
            ]
            self.gateways[name] = PlainGateway(name, folder / f"{name}.sock", devices, 0.0)
            self.gateways[name].score = self._score

    def close(self) -> None:
        for one in self.gateways.values():
            one.close()

    def _score(self, device: str, number: int, weights: str) -> tuple[int, int]:
        known = {digest(variant(index)) for index in range(3)}
        share = self.right.get(weights, 0.9 if weights in known else self.unlike_base)
        return self.held_out, round(share * self.held_out)

    # Devices

    def entry(self, device: str) -> dict[str, Any]:
        """What a device's gateway says of it."""
        (found,) = [
            entry
            for one in self.gateways.values()
            for entry in one.devices
            if entry["device"] == device
        ]
        return found

    def current(self) -> dict[str, str]:
        """Digest of the weights that each device works with."""
        return {
            entry["device"]: entry["current"]
            for one in self.gateways.values()
            for entry in one.devices
        }

    # Campaigns

    def campaign(self, *stages: Mapping[str, Any], base: str = "m:1", **fields: Any) -> str:
        """A campaign of one training round per stage, by ann."""
        settings = {"rounds": 1, "stages": list(stages) or [CANARY, HALF, ALL], **fields}
        config = CampaignConfig.model_validate({"name": "test", **settings})
        blob = self.models.blob("m", int(base.partition(":")[2] or 1))
        return new_campaign(self.store, config, MANIFESTS, blob, "ann", base)

    def transport(self, dies_at: int | None = None, pull: float = 0.4) -> DirectTransport:
        """One that looks for replies that often, and dies before a request."""
        made = DirectTransport(self.gateways, dies_at, self.clock)
        made.pull = pull
        return made

    def drive(self, name: str, transport: DirectTransport | None = None) -> str:
        """Drive a campaign to its end; returns its state."""
        used = transport or self.transport()
        return CampaignDriver(self.store, name, used, clock=self.clock).run()

    def rounds(self, name: str) -> list[tuple[str, int]]:
        """Kind and number of devices of each round."""
        return [(one.kind, len(one.plan["assignments"])) for one in self.store.rounds(name)]

    def asked(self, name: str) -> dict[int, set[str]]:
        """The devices of each round."""
        return {
            one.number: {device["device"] for device in one.plan["assignments"]}
            for one in self.store.rounds(name)
        }

    def plan(self, name: str, number: int) -> RoundPlan:
        return RoundPlan.from_json(self.store.round(name, number).plan)

    def reason(self, name: str) -> str:
        return self.store.campaign(name).reason

    def is_approved(self, name: str, who: str = "bob", seconds: float = 10.0) -> None:
        """From now on somebody decides, so long after a look, whatever the campaign waits for."""
        record = self.store.campaign(name)
        if record.state in ENDED_STATES:
            return
        if record.waiting:
            Stages(self.store).decide(name, record.waiting, who)
        self.clock.call_later(seconds, lambda: self.is_approved(name, who, seconds))
