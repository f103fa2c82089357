"""A masked, signed campaign with the devices' own C, beside the same campaign without masks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.campaign import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.key_holders import KeyHolders
from fleet.protocol.keys import (
    DeviceKeys,
    Keyring,
    SignedKeyring,
    SigningKey,
    TaskKeys,
    exchange_public,
)
from fleet.store import SqlStore, sqlite_url
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from simulator.machines.device_spec import DeviceSpec
from tests.fleet.coordinator.masked_site import FlakyUnmasker, SiteTransport
from tests.fleet.coordinator.test_whole_campaign import Firmware, Site, firmware, nobody_waits
from tests.fleet.gateway.deltas import FLEET

__all__ = ["firmware", "nobody_waits"]  # fixtures

DEVICES = 24
UNMASKER = bytes(range(33, 65))


class KeyedSite(Site):
    """Its devices have keys and an authority; one unmasker knows them."""

    def __init__(self, folder: Path, firmware: Firmware, devices: int, seed: int) -> None:
        self.authority, self.task_key = SigningKey.generate(), SigningKey.generate()
        self.keys: dict[str, DeviceKeys] = {}
        super().__init__(folder, firmware, devices, seed)
        keyring = Keyring(1, self.task_key.public, (exchange_public(UNMASKER),))
        signed = SignedKeyring.sign(self.authority, FLEET, keyring)
        store = UnmaskerStore()
        store.enrol([of.enrol(FLEET, name) for name, of in self.keys.items()], FLEET, 0.0)
        self.unmasker = FlakyUnmasker(LocalUnmasker(UNMASKER, FLEET, store, 5, self.clock))
        self.holders = KeyHolders(
            TaskKeys(FLEET, self.task_key, signed), {exchange_public(UNMASKER): self.unmasker}
        )

    def spec(self, name: str) -> DeviceSpec:
        self.keys[name] = DeviceKeys.generate()
        # No keyring: the first one comes with the first task.
        return dataclasses.replace(
            super().spec(name),
            keys=self.keys[name].encode(),
            authority=self.authority.public,
        )


def run(site: KeyedSite, **changes: Any) -> tuple[SqlStore, str]:
    store = SqlStore(sqlite_url(site.folder / "campaign.sqlite"), site.clock)
    config = CampaignConfig.model_validate(
        {
            "name": "cows",
            "rounds": 2,
            "learning_rate": 0.015,
            "min_devices": len(site.devices),
            "deadline_seconds": 900,
            "wait_for_devices_seconds": 1200,
            "weighting": "uniform",
            "aggregation": {"rule": "fedavg"},
            **changes,
        }
    )
    text = (site.firmware.bundle.path / "manifest.json").read_text("utf-8")
    campaign = new_campaign(store, config, {"cows": text}, site.firmware.bundle.weights)
    driver = CampaignDriver(
        store, campaign, SiteTransport(site), clock=site.clock, protection=site.holders
    )
    assert driver.run() == "finished", store.campaign(campaign).reason
    return store, campaign


MASKED = {
    "coding": "masked",
    "masking": {"least_devices": 10, "value_bound": 32767},
}


@pytest.mark.parametrize("with_losses", [False, True])
def test_a_masked_campaign_makes_the_same_weights_as_a_plain_one(
    firmware: Firmware, tmp_path: Path, with_losses: bool
) -> None:
    made = []
    for name, changes in (("plain", {}), ("masked", MASKED)):
        folder = tmp_path / name
        folder.mkdir()
        site = KeyedSite(folder, firmware, DEVICES, seed=1)
        if with_losses and changes:
            dice = site.random
            for _ in range(3):
                site.clock.call_later(dice.uniform(2, 20), site.broker.kill)
                site.clock.call_later(dice.uniform(2, 20), site.kill_gateway)
            for device in list(site.devices.values())[::3]:
                site.clock.call_later(dice.uniform(2, 20), device.cut_line)
            site.unmasker.dies_at = {1, 2}
        store, campaign = run(site, **changes)
        result = store.round(campaign, 1).result
        assert (result["accepted"], result["refused"]) == (DEVICES, {})
        if changes:
            (one,) = result["sets"]
            assert one["counted"]
            assert one["devices"] == DEVICES
            assert store.round(campaign, 2).result["sets"][0]["differs_by"] == 0
            before = sum(one["correct_before"] for one in store.reports(campaign, 0))
            after = sum(one["correct_before"] for one in store.reports(campaign, 3))
            assert after > before, "it learns"
        made.append(np.frombuffer(store.latest_weights(campaign).master, "<f8"))
        store.close()
        site.close()
    assert np.array_equal(*made), "bit for bit"
