"""Host devices, a real Mosquitto and the real gateway process: both sides of the wire."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fleet.protocol import DeviceState, device_seed
from simulator.devices.flash_image import Identity
from tests.fleet.gateway.conftest import make_site
from tests.fleet.gateway.deltas import CAMPAIGN, FLEET, tasks
from tests.fleet.gateway.site import Site
from tests.patience import wait_until

from ..host_device import SMALL, HostDevice
from ..tiny_round import Data, Weights, clustered_data, expected_values, train
from .mosquitto_site import Line
from .rounds import ALL, FACTORY, digest_of, trained

__all__ = ["make_site"]  # a fixture

NAMES = ["cow-0", "cow-1", "cow-2"]
BLOB = trained().blob()
EPOCHS = 3


class Herd:
    """Devices with their lines, beside the gateway that they belong to."""

    def __init__(self, site: Site, library: ctypes.CDLL) -> None:
        self.site = site
        self.data = {name: clustered_data(60, seed) for seed, name in enumerate(NAMES, start=1)}
        self.devices = {name: self._provision(library, name) for name in NAMES}
        self.lines = {name: Line(device, site.config.port) for name, device in self.devices.items()}
        self.run_until(lambda: all(site.is_online(name) for name in NAMES))

    def _provision(self, library: ctypes.CDLL, name: str) -> HostDevice:
        identity = Identity(name, FLEET, self.site.passwords[name])
        region = self.data[name].region(SMALL.samples)
        device = HostDevice(library, region, identity=identity)
        assert device.power_on(0) == 0
        return device

    def step(self, polls: int = 20) -> None:
        for line in self.lines.values():
            line.step(polls)

    def run_until(self, done: Callable[[], object], polls: int = 20) -> None:
        """Carries bytes until ``done``; with few ``polls`` at a time nothing is missed."""
        wait_until(lambda: self.step(polls) or done(), lambda: self.site.log)

    def start(self, round: int = 1, **changes: Any) -> dict[str, Any]:
        leases = dict.fromkeys(NAMES, changes.pop("lease", 1))
        fields: dict[str, Any] = {
            "round": round,
            "blobs": [{"sha256": digest_of(BLOB).hex(), "data": BLOB}],
            "chunk_bytes": 16,
            "tasks": [tasks(leases, plan=ALL.hex(), weights=digest_of(BLOB).hex())],
            "plans": {ALL.hex(): {"values": 68}},
            "epochs": EPOCHS,
            "max_score_drop": 1.0,
            "target": len(NAMES),
            **changes,
        }
        return self.site.start(names=NAMES, **fields)

    def collect(self, round: int = 1) -> dict[str, Any]:
        reply: dict[str, Any] = {}

        def is_closed() -> bool:
            for _ in range(20):
                self.step()
            reply.update(self.site.client.collect(CAMPAIGN, round))
            return reply["state"] == "closed"

        self.run_until(is_closed)
        return reply

    def states(self) -> list[int]:
        return [device.state for device in self.devices.values()]


def delta_of(data: Data, name: str, epochs: int) -> NDArray[np.int64]:
    before = Weights.parse(BLOB)
    after = train(before, data, device_seed(7, name), epochs, biases_only=False)
    return expected_values(before, after, biases_only=False)


def check(herd: Herd, reply: dict[str, Any], epochs: int = EPOCHS) -> None:
    """Every device was counted once, with what training on its samples gives."""
    samples = {name: len(herd.data[name].part(held_out=False).labels) for name in NAMES}
    expected = sum(delta_of(herd.data[name], name, epochs) * samples[name] for name in NAMES)
    (total,) = reply["sums"][ALL.hex()]
    assert total["devices"] == reply["accepted"] == len(NAMES)
    assert total["weight"] == sum(samples.values())
    np.testing.assert_array_equal(np.frombuffer(total["values"], "<i8"), expected)
    assert reply["refused"] == {}


@pytest.fixture
def herd(make_site: Callable[[list[str]], Site], library: ctypes.CDLL) -> Herd:
    return Herd(make_site(NAMES), library)


def test_a_round_of_devices_gives_the_exact_sum_of_what_they_learnt(herd: Herd) -> None:
    assert herd.start()["devices"] == {}
    check(herd, herd.collect())
    herd.run_until(lambda: set(herd.states()) == {DeviceState.IDLE})  # they have their receipts
    for device in herd.devices.values():
        assert device.candidate_weights == digest_of(BLOB)
        assert device.current_weights == hashlib.sha256(FACTORY).digest()


@pytest.mark.slow
def test_broker_and_gateway_die_in_the_middle_and_every_delta_counts_once(herd: Herd) -> None:
    herd.start(uplink_chunk_bytes=64, epochs=25)
    herd.run_until(lambda: DeviceState.TRAINING in herd.states(), polls=1)
    herd.site.kill_broker()
    herd.site.broker.start()
    herd.run_until(lambda: DeviceState.SENDING in herd.states(), polls=1)
    herd.site.kill_gateway()
    for _ in range(50):
        herd.step()
    herd.site.start_gateway()
    check(herd, herd.collect(), epochs=25)
    herd.run_until(lambda: set(herd.states()) == {DeviceState.IDLE})


def test_a_version_is_released_and_an_older_lease_is_refused(herd: Herd) -> None:
    herd.start(lease=5)
    herd.collect()
    herd.start(round=2, lease=5, action="release")
    reply = herd.collect(2)
    assert reply["accepted"] == len(NAMES)
    for device in herd.devices.values():
        assert device.current_weights == digest_of(BLOB)
    refusals = herd.start(round=3, lease=4)["devices"]
    assert refusals == dict.fromkeys(NAMES, "older-lease")
