"""Devices of two sites, one of which has a broker with TLS, at real brokers and gateways."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from codegen.firmware.bundle import Bundle
from fleet.attach import Attached, Place, virtual_devices
from fleet.demo.site import GatewayProcess
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.ports import free_port
from fleet.security import Authority
from simulator.errors import FleetError
from simulator.fleet.fleet import worker_count
from simulator.machines.device_spec import DeviceSpec
from tests.patience import wait_until

FLEET = "demo"
CAMPAIGN = "00112233445566aa"
MOST_SAMPLES = 512
"""That a round trains on."""
BOARDED, HOSTED = ["east-1", "west-1"], ["east-2", "west-2"]
NAMES = sorted(BOARDED + HOSTED)


class Site:
    """A broker and a gateway, which reaches it in the clear whatever its devices do."""

    def __init__(self, folder: Path, name: str, authority: Authority | None) -> None:
        (folder / "logs").mkdir(parents=True)
        self.names = [device for device in NAMES if device.startswith(name)]
        self.passwords = new_passwords(self.names)
        login = new_passwords(["gw"])
        self.broker = Broker(
            folder / "broker", BrokerConfig(FLEET, login, self.passwords, port=free_port())
        )
        self.gateway = GatewayProcess(folder, "gw", self.names, self.broker.port, login["gw"])
        self.client = GatewayClient(self.gateway.socket)
        if authority is None:
            self.place = Place("127.0.0.1", self.broker.port)
        else:
            issued = authority.issue("broker", ["localhost"])
            port = free_port()
            with (folder / "broker" / "mosquitto.conf").open("a") as config:
                config.write(
                    f"\nlistener {port} 127.0.0.1\n"
                    f"certfile {issued.certificate}\nkeyfile {issued.key}\n"
                )
            self.place = Place("localhost", port, authority.certificate)

    def announced(self) -> dict[str, dict[str, Any]]:
        devices = self.client.hello()["devices"]
        return {one["device"]: one for one in devices if one["online"]}

    def release(self, bundle: Bundle, blob: bytes) -> None:
        digest = hashlib.sha256(blob).hexdigest()
        plan = bundle.manifest.plans[0]
        self.client.start(
            campaign=CAMPAIGN,
            round=1,
            action="release",
            blobs=[{"sha256": digest, "data": blob}],
            tasks=[
                {
                    "plan": plan.id,
                    "weights": digest,
                    "devices": {name: [1, 100] for name in self.names},
                }
            ],
            plans={plan.id: {"values": plan.delta_values}},
            epochs=1,
            learning_rate=0.02,
            seed=1,
            deadline_seconds=600,
            target=len(self.names),
        )


class World:
    """Two sites with two devices each: a board and host code."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        authority = Authority.create(folder / "ca", FLEET)
        self.sites = [
            Site(folder / "e", "east", None),
            Site(folder / "w", "west", authority),
        ]
        passwords = self.sites[0].passwords | self.sites[1].passwords
        bundles = {"stm32f407": bundle.path}
        self.specs = [
            *virtual_devices(BOARDED, passwords, bundles, FLEET, machine="unicorn", seed=1),
            *virtual_devices(HOSTED, passwords, bundles, FLEET, machine="host", seed=2),
        ]
        self.attached = Attached(
            {
                site.place: [spec for spec in self.specs if spec.device in site.names]
                for site in self.sites
            }
        )

    def announced(self) -> dict[str, dict[str, Any]]:
        return {name: one for site in self.sites for name, one in site.announced().items()}

    def until(self, condition: Any) -> None:
        def fine() -> bool:
            stats = self.attached.stats()
            assert not any(one.fault for one in stats.values()), stats
            return bool(condition())

        wait_until(fine, self.attached.stats)


@pytest.fixture(scope="module")
def world(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        world = World(tmp_path_factory.mktemp("a"), digits)
        for site in world.sites:
            stack.enter_context(site.broker)
            stack.enter_context(site.gateway)
            site.gateway.wait_ready()
        stack.enter_context(world.attached)
        world.until(lambda: sorted(world.announced()) == NAMES)
        yield world


def digest_of_flash(world: World, device: str) -> str:
    return hashlib.sha256(world.attached.flash_of(device)).hexdigest()


def test_devices_of_both_sites_announce_themselves_with_what_they_have_recorded(
    world: World,
) -> None:
    assert world.attached.online() == set(NAMES)
    said = world.announced()
    for spec in world.specs:
        one = said[spec.device]
        held_out = len(spec.labels) // 3
        assert one["bundle"] == world.bundle.manifest.bundle_id
        assert one["held_out_samples"] == held_out
        assert one["train_samples"] == min(len(spec.labels) - held_out, MOST_SAMPLES)
        assert one["current"] == digest_of_flash(world, spec.device)
    for site in world.sites:
        assert sorted(site.announced()) == site.names
    assert len(world.attached._fleet.worker_stats()) == worker_count()


@pytest.mark.parametrize("device", NAMES)
def test_a_device_whose_power_was_cut_dials_the_same_place_again(world: World, device: str) -> None:
    before = {name: stats.dials for name, stats in world.attached.stats().items()}
    world.attached.power_cycle(device, off_seconds=0.05)
    world.until(lambda: world.attached.stats()[device].dials > before[device])
    world.until(lambda: sorted(world.announced()) == NAMES and device in world.attached.online())
    others = {name: stats.dials for name, stats in world.attached.stats().items()}
    assert [name for name in NAMES if others[name] != before[name]] == [device]


def test_what_is_released_lies_in_the_flash_of_each_device_bit_for_bit(world: World) -> None:
    factory = world.bundle.weights
    learnt = bytes([factory[0] ^ 1]) + factory[1:]
    for site in world.sites:
        site.release(world.bundle, learnt)
    digest = hashlib.sha256(learnt).hexdigest()
    world.until(lambda: {one["current"] for one in world.announced().values()} == {digest})
    for name in NAMES:
        assert world.attached.flash_of(name) == learnt
        assert digest_of_flash(world, name) == world.announced()[name]["current"]


def test_a_device_of_another_name_is_refused_with_those_there_are(world: World) -> None:
    with pytest.raises(FleetError, match=r"'south'; there are east-1, .*, west-2"):
        world.attached.flash_of("south")


def test_one_name_at_two_places_is_refused(world: World) -> None:
    twice: dict[Place, list[DeviceSpec]] = {
        Place("127.0.0.1", 1): world.specs[:1],
        Place("127.0.0.1", 2): world.specs[:1],
    }
    with pytest.raises(FleetError, match="own name"):
        Attached(twice)


def test_a_certificate_that_is_none_is_named(world: World, tmp_path: Path) -> None:
    place = Place("localhost", 1, tmp_path / "ca.crt")
    with pytest.raises(FleetError, match=r"ca\.crt can't be used"):
        Attached({place: world.specs[:1]}).__enter__()
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(FleetError, match=r"ca\.crt can't be used"):
        Attached({place: world.specs[:1]}).__enter__()
