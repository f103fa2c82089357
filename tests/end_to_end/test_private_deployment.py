"""A private deployment up to released weights, its unmasker killed on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.attach import Attached, Place, virtual_devices
from fleet.campaign import CampaignConfig
from fleet.demo.digits import example_folder
from fleet.firmware import compile_firmware
from fleet.service import deployment
from fleet.service.client import Client
from fleet.service.deployment_keys import UNMASKER, enrol_devices
from fleet.service.schema import DeviceToAdd
from fleet.store import ENDED_STATES
from fleet.unmasker import folder as unmaskers
from tests import deployments, processes
from tests.patience import wait_for_service

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


def finished(client: Client, campaign: str) -> str:
    wait_for_service(
        lambda: client.campaign(campaign).state in ENDED_STATES,
        lambda: client.campaign(campaign),
    )
    return client.campaign(campaign).state


def test_masked_rounds_go_on_where_an_unmasker_was_killed(folder: Path, tmp_path: Path) -> None:
    example = example_folder()
    bundle = compile_firmware(
        example / "digits.onnx", "stm32f407", [], example / "calibration.npz", tmp_path / "digits"
    )
    client = deployment.connect(folder)
    text = (bundle.path / "manifest.json").read_text("utf-8")
    client.import_bundle("digits", text, (bundle.path / "weights.bin").read_bytes())
    told = client.add_devices([DeviceToAdd(device=name, site="home") for name in DEVICES])
    passwords = {one.device: one.password for one in told}
    fleet_keys, device_keys = enrol_devices(folder, "barn", DEVICES)
    specs = virtual_devices(
        *(DEVICES, passwords, {"stm32f407": bundle.path}, "barn"),
        machine="host",
        fleet_keys=fleet_keys,
        device_keys=device_keys,
    )
    ports = deployment.Deployment.read(folder).sites["home"]
    config = CampaignConfig.model_validate(
        {
            "name": "hidden",
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
    )
    store = unmaskers.open_unmasker(folder / UNMASKER).store
    with Attached({Place("127.0.0.1", ports.plain): specs}) as attached:
        wait_for_service(
            lambda: len(list(client.all_devices("online"))) == len(DEVICES), attached.stats
        )
        processes.kill("unmasker", "run", str(folder / UNMASKER))
        campaign = client.start_campaign(config).campaign
        # The round has ended, and its sums can't be read without the unmasker.
        wait_for_service(
            lambda: any(
                one.round == 1 and one.accepted == len(DEVICES)
                for one in client.campaign(campaign).rounds
            ),
            lambda: client.campaign(campaign),
        )
        assert store.count_sets() == 0
        deployments.start(folder)
        assert finished(client, campaign) == "finished"
    assert [(one.round, one.devices) for one in store.sets()] == [(1, tuple(DEVICES))]
    assert store.refusals() == {}
    store.close()
    client.close()
