"""A campaign of a hundred devices through the driver, the gateway and the firmware that ship.

Nobody waits: the driver, the gateway's core and store, the broker and the devices' own C, with
client and engine, live in one virtual time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.aggregation import FedAvg, init
from fleet.aggregation.mean import MasterState, plan_sum_from_manifest
from fleet.attach.samples import deal_digits, input_codes
from fleet.campaign import CampaignConfig, Operation
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.demo.digits import example_folder
from fleet.firmware import compile_firmware
from fleet.protocol import Delta, delta_coding
from fleet.protocol.manifest import Manifest
from fleet.store import SqlStore, copy_store, restore_store, sqlite_url
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.registry import build_machine, machine_kind
from tests.fleet.gateway.board_device import BoardDevice
from tests.fleet.gateway.deltas import FLEET, GATEWAY
from tests.fleet.gateway.virtual_site import VirtualSite

PLAN = "small"


@dataclass(frozen=True)
class Firmware:
    bundle: Bundle
    library: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    example, folder = example_folder(), tmp_path_factory.mktemp("firmware")
    bundle = compile_firmware(
        example / "digits.onnx",
        "stm32f407",
        [f"{example / 'plans.json'}#{PLAN}"],
        example / "calibration.npz",
        folder / "bundle",
    )
    machine_kind("host").prepare(bundle.path, folder / "device.so")
    return Firmware(bundle, folder / "device.so", Manifest.read(bundle.path / "manifest.json"))


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: float) -> None:
        raise AssertionError(f"somebody waits for {seconds} s")

    monkeypatch.setattr(time, "sleep", refuse)


class Site(VirtualSite):
    """A gateway with devices that run the firmware's C and have digits to learn."""

    def __init__(self, folder: Path, firmware: Firmware, devices: int, seed: int) -> None:
        self.firmware = firmware
        # There are enough digits for 99 devices; of 100 each two see the same.
        self._shares = deal_digits([f"herd-{number}" for number in range(min(devices, 50))], seed)
        super().__init__(folder, seed, devices)

    def make_device(self, name: str) -> BoardDevice:
        clock = self.clock
        library = self.firmware.library
        machine = build_machine(self.spec(name), library, lambda: 1000.0 * clock.monotonic())
        return BoardDevice(self, name, machine)

    def spec(self, name: str) -> DeviceSpec:
        number = int(name.removeprefix("cow-"))
        share = self._shares[number % len(self._shares)]
        return DeviceSpec(
            device=name,
            bundle=self.firmware.bundle.path,
            password="moo",
            samples=input_codes(self.firmware.manifest, share.x),
            labels=share.y,
            fleet=FLEET,
            machine="host",
            seed=number,
        )


class SiteTransport(Transport):
    """Asks the site's gateway; a reply is there at once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._replies: list[Reply] = []
        self._cursor = 0
        self.send(GATEWAY, Operation.HELLO, {})

    def gateways(self) -> frozenset[str]:
        return frozenset({GATEWAY})

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        answers = []
        if operation is not Operation.HELLO:
            name = {"campaign": fields["campaign"], "round": fields["round"]}
            answer = self._site.ask(operation.value, **fields)
            answers.append({"op": operation.value, **name, "answer": answer})
        hello = self._site.ask("hello", cursor=self._cursor)
        self._cursor = hello["cursor"]
        self._replies += read_replies(gateway, {"answers": answers, "hello": hello})

    def receive(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        self._site.clock.sleep(0.4)
        return replies


def stored_campaign(site: Site, rounds: int) -> tuple[SqlStore, str]:
    firmware = site.firmware
    store = SqlStore(sqlite_url(site.folder / "campaign.sqlite"), site.clock)
    config = CampaignConfig(
        name="cows",
        rounds=rounds,
        learning_rate=0.015,
        min_devices=len(site.devices),
        deadline_seconds=900,
        # A gateway that was away when a device came waits for the next thing that it says.
        wait_for_devices_seconds=1200,
    )
    text = (firmware.bundle.path / "manifest.json").read_text("utf-8")
    return store, new_campaign(store, config, {"cows": text}, firmware.bundle.weights)


def run_campaign(site: Site, rounds: int) -> tuple[SqlStore, str]:
    store, campaign = stored_campaign(site, rounds)
    drive(site, store, campaign)
    return store, campaign


def drive(site: Site, store: SqlStore, campaign: str) -> None:
    driver = CampaignDriver(store, campaign, SiteTransport(site), clock=site.clock)
    assert driver.run() == "finished"


def expected_weights(site: Site, rounds: int) -> MasterState:
    """The weights after adding up each device's delta of each round once, as it was sent."""
    manifest = site.firmware.manifest
    (plan,) = manifest.plans
    state = init(manifest.tensors, site.firmware.bundle.weights)
    for number in range(1, rounds + 1):
        total, weight = np.zeros(plan.delta_values, np.int64), 0
        for device in site.devices.values():
            mine = [one for one in device.sent if one.round == number]
            values, samples = whole_delta(mine, plan.delta_values)
            total += values.astype(np.int64) * samples
            weight += samples
        part = plan_sum_from_manifest(manifest, plan, total.astype("<i8").tobytes(), weight)
        state = FedAvg().apply(state, [[part]])
    return state


def whole_delta(messages: list[Delta], values: int) -> tuple[np.ndarray, int]:
    """A delta's values, and the samples that they are weighted by, however often it was sent."""
    chunks = {one.chunk: one for one in messages}
    assert set(chunks) == set(range(messages[0].chunks))
    coded = b"".join(chunks[number].coded for number in sorted(chunks))
    return delta_coding.decode(coded, values), messages[0].train_samples


def assert_each_delta_counts_once(site: Site, store: SqlStore, campaign: str, rounds: int) -> None:
    for one in store.rounds(campaign):
        assert one.result["accepted"] == len(site.devices), one.number
        assert (one.result["late"], one.result["refused"]) == (0, {})
    stored = np.frombuffer(store.latest_weights(campaign).master, "<f8")
    assert np.array_equal(stored, expected_weights(site, rounds).master)
    assert stored.any()


def right_answers(store: SqlStore, campaign: str, number: int, when: str) -> int:
    return sum(one[when] for one in store.reports(campaign, number))


def test_a_hundred_devices_run_a_campaign_to_exact_weights_and_learn(
    firmware: Firmware, tmp_path: Path
) -> None:
    site = Site(tmp_path, firmware, devices=100, seed=1)
    store, campaign = run_campaign(site, rounds=2)
    assert_each_delta_counts_once(site, store, campaign, rounds=2)
    before = right_answers(store, campaign, 0, "correct_before")
    assert right_answers(store, campaign, 3, "correct_before") > before
    site.close()


def test_two_runs_of_one_seed_are_equal(firmware: Firmware, tmp_path: Path) -> None:
    weights = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        site = Site(folder, firmware, devices=8, seed=4)
        store, campaign = run_campaign(site, rounds=1)
        weights.append(store.latest_weights(campaign).sha256)
        site.close()
    assert weights[0] == weights[1]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_on_the_way_each_delta_counts_once(
    firmware: Firmware, tmp_path: Path, seed: int
) -> None:
    site = Site(tmp_path, firmware, devices=20, seed=seed)
    dice = site.random
    for _ in range(4):
        site.clock.call_later(dice.uniform(2, 20), site.broker.kill)
        site.clock.call_later(dice.uniform(2, 20), site.kill_gateway)
    for device in site.devices.values():
        for _ in range(3):
            site.clock.call_later(dice.uniform(2, 20), device.cut_line)
    store, campaign = run_campaign(site, rounds=2)
    assert sum(device.cuts for device in site.devices.values()) > len(site.devices)
    assert_each_delta_counts_once(site, store, campaign, rounds=2)
    site.close()


class CopyingTransport(SiteTransport):
    """Has the store copied before a round's start goes out."""

    def __init__(self, site: Site, store: SqlStore, round_number: int) -> None:
        super().__init__(site)
        self._store, self._round = store, round_number
        self.copy = SqlStore(sqlite_url(site.folder / "copy.sqlite"))
        self.made = 0.0

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START and fields["round"] == self._round and not self.made:
            copy_store(self._store, self.copy)
            self.made = self._store.clock.wall()
        super().send(gateway, operation, fields)


@pytest.mark.parametrize("remembers", [True, False], ids=["gateway-remembers", "gateway-is-new"])
def test_a_restored_store_goes_on_with_devices_that_have_gone_on_without_it(
    firmware: Firmware, tmp_path: Path, remembers: bool
) -> None:
    site = Site(tmp_path, firmware, devices=6, seed=2)
    store, campaign = stored_campaign(site, rounds=3)
    transport = CopyingTransport(site, store, 2)
    driver = CampaignDriver(store, campaign, transport, clock=site.clock)
    assert driver.run() == "finished"
    seen = {one["device"]: one["lease"] for one in site.ask("hello", cursor=0)["devices"]}
    lost = {name: device.sent[-1] for name, device in site.devices.items()}
    if not remembers:
        site.kill_gateway()
        for file in site.folder.glob("store.sqlite*"):
            file.unlink()

    restored = SqlStore(sqlite_url(tmp_path / "restored.sqlite"), site.clock)
    restore_store(transport.copy, restored, transport.made)
    drive(site, restored, campaign)

    offset = restored.round_offset()
    for name, device in site.devices.items():
        after = [one for one in device.sent if one.lease > seen[name]]
        assert after, f"{name} had no task with a higher lease than it had seen"
        rounds = {one.round for one in after}
        assert 3 + offset in rounds
        assert 3 not in rounds
        assert lost[name].round < offset
    for one in restored.rounds(campaign):
        assert (one.state, one.result["refused"]) == ("done", {}), one
        if one.number != 2 or remembers:
            assert one.result["accepted"] == len(site.devices), one
    latest = restored.latest_weights(campaign)
    assert {one["current"] for one in site.ask("hello", cursor=0)["devices"]} == {latest.sha256}
    site.close()
