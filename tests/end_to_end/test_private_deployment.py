"""A private deployment up to released weights, its unmasker killed, its keys exchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.firmware.bundle import Bundle
from fleet.attach import Attached, Place, virtual_devices
from fleet.campaign import CampaignConfig
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.settings import CoordinatorSettings
from fleet.demo.digits import example_folder
from fleet.firmware import compile_firmware
from fleet.service import deployment
from fleet.service.deployment_keys import UNMASKER, enrol_devices
from fleet.service.schema import DeviceToAdd
from fleet.store import ENDED_STATES
from fleet.unmasker import folder as unmaskers
from tests import deployments, processes
from tests.fleet.cli.conftest import Run, tinyfleet
from tests.patience import wait_for_service

__all__ = ["tinyfleet"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

DEVICES = [f"mcu-{number}" for number in range(1, 9)]
LEAST = 5


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as made:
        path = Path(made, "site")
        deployment.init(path, "barn", ["home"], 1, is_private=True)
        deployments.start(path)
        try:
            yield path
        finally:
            deployment.down(path)


class Fleet:
    """Devices that run, and campaigns of theirs."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder = folder
        self.client = deployment.connect(folder)
        text = (bundle.path / "manifest.json").read_text("utf-8")
        self.client.import_bundle("digits", text, (bundle.path / "weights.bin").read_bytes())
        told = self.client.add_devices([DeviceToAdd(device=name, site="home") for name in DEVICES])
        fleet_keys, device_keys = enrol_devices(folder, "barn", DEVICES)
        self.specs = virtual_devices(
            *(DEVICES, {one.device: one.password for one in told}, {"stm32f407": bundle.path}),
            "barn",
            machine="host",
            fleet_keys=fleet_keys,
            device_keys=device_keys,
        )
        self.place = Place("127.0.0.1", deployment.Deployment.read(folder).sites["home"].plain)
        self.store = unmaskers.open_unmasker(folder / UNMASKER).store

    def begin(self, name: str) -> str:
        """A masked campaign of one round."""
        wait_for_service(lambda: len(list(self.client.all_devices("online"))) == len(DEVICES))
        config = {
            "name": name,
            "model": "digits",
            "seed": 3,
            "rounds": 1,
            "last_round": "none",
            "learning_rate": 0.03,
            "min_devices": len(DEVICES),
            "deadline_seconds": 600,
            "plans": ["small"],
            "coding": "masked",
            "masking": {"least_devices": LEAST},
            "aggregation": {"rule": "fedavg"},
        }
        return self.client.start_campaign(CampaignConfig.model_validate(config)).campaign

    def end(self, campaign: str) -> str:
        """Its state, once it has ended."""
        wait_for_service(
            lambda: self.client.campaign(campaign).state in ENDED_STATES,
            lambda: self.client.campaign(campaign),
        )
        return self.client.campaign(campaign).state

    def sets(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """Campaign, round and devices of each set whose masks were told."""
        return [(one.campaign.hex(), one.round, one.devices) for one in self.store.sets()]


@pytest.fixture
def fleet(folder: Path, tmp_path: Path) -> Iterator[Fleet]:
    example = example_folder()
    bundle = compile_firmware(
        example / "digits.onnx", "stm32f407", [], example / "calibration.npz", tmp_path / "digits"
    )
    made = Fleet(folder, bundle)
    with Attached({made.place: made.specs}):
        yield made
    made.store.close()
    made.client.close()


def test_a_masked_round_waits_for_an_unmasker_that_was_killed(fleet: Fleet) -> None:
    processes.kill("unmasker", "run", str(fleet.folder / UNMASKER))
    campaign = fleet.begin("hidden")
    # All have sent, and their sum can't be read without the unmasker.
    wait_for_service(
        lambda: any(
            one.round == 1 and one.accepted == len(DEVICES)
            for one in fleet.client.campaign(campaign).rounds
        ),
        lambda: fleet.client.campaign(campaign),
    )
    assert fleet.sets() == []
    deployments.start(fleet.folder)
    assert fleet.end(campaign) == "finished"
    assert fleet.sets() == [(campaign, 1, tuple(DEVICES))]
    assert fleet.store.refusals() == {}


def test_devices_follow_a_new_task_key_and_a_new_unmaskers_key(
    fleet: Fleet, tinyfleet: Run
) -> None:
    """What docs/howto/keys.md says to run."""
    first = fleet.begin("before")
    assert fleet.end(first) == "finished"
    keys, unmasker = fleet.folder / "keys", fleet.folder / UNMASKER
    old = KeyHolders.of(CoordinatorSettings.read(fleet.folder / deployment.SETTINGS)).keys
    assert old is not None
    for command in (
        ("keys", "task", fleet.folder / "new"),
        ("unmasker", "rotate", unmasker),
        (
            *("keys", "ring", keys, "--fleet", "barn"),
            *("--task-key", fleet.folder / "new" / "task.pub"),
            *("--unmasker", unmasker / "unmasker.pub"),
        ),
    ):
        assert tinyfleet(*command).returncode == 0
    (fleet.folder / "new" / "task.key").replace(keys / "task.key")
    parts = deployment.processes(fleet.folder)
    for name in ("service", "unmasker"):
        assert parts[name].adopt()
        parts[name].stop()
    deployments.start(fleet.folder)
    second = fleet.begin("after")
    assert fleet.end(second) == "finished"
    assert fleet.sets() == [(first, 1, tuple(DEVICES)), (second, 1, tuple(DEVICES))]
    assert fleet.store.refusals() == {}
    # The keyring went into the journals of devices: the first one's task key is nobody's now.
    new = KeyHolders.of(CoordinatorSettings.read(fleet.folder / deployment.SETTINGS)).keys
    assert new is not None
    assert new.keyring.keyring.generation == old.keyring.keyring.generation + 1
    assert new.key.public != old.key.public
