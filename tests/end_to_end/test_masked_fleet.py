"""A masked, signed campaign of emulated microcontrollers over a real broker, with all services.

Devices drop out while they train, gateways and the unmasker are killed in the middle of a round;
then the same devices run the same campaign without masks. Both have made the same weights, bit for
bit: what was unmasked is the sum of exactly the devices that were counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.attach.samples import deal_digits
from fleet.campaign.config import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.service import Coordinator, ProgressEvent
from fleet.demo.digits import device_names, population
from fleet.demo.orchestrator import assign_gateways, wait_online
from fleet.demo.site import Site
from fleet.store import SqlStore, sqlite_url
from tests.end_to_end.conftest import SEED, Quiet
from tests.patience import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

DEVICES = device_names(24)
# One of the first gateway, two of the second: what is left is what each is to wait for.
LEAVING = ["mcu-03", "mcu-08", "mcu-18"]
CONFIG: dict[str, Any] = {
    "name": "kill-test",
    "seed": SEED,
    "rounds": 2,
    "epochs": 4,
    "learning_rate": 0.01,
    "deadline_seconds": 1800,  # never reached: a round ends with as many deltas as it wants
    "min_devices": len(DEVICES) - len(LEAVING),
    "cohort_size": len(DEVICES) - len(LEAVING),
    "over_selection": 1.0,
    "plans": ("small", "middle"),
    "weighting": "uniform",
    "aggregation": {"rule": "fedavg"},
    "score_first": False,
    "last_round": "none",
}
MASKED = {"coding": "masked", "masking": {"least_devices": 4}}


@pytest.fixture
def private_site(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Site]:
    shares = deal_digits(DEVICES, SEED)
    gateways = assign_gateways(DEVICES, ("gw-1", "gw-2"))
    with Site(gateways, tmp_path / "logs", least_devices=4) as running:
        running.boot(population(shares, bundles, running.device_passwords, SEED))
        wait_online(running, DEVICES, Quiet())
        yield running


class Running:
    """A campaign in a thread."""

    def __init__(
        self, site: Site, bundles: dict[str, Path], store_path: Path, **changes: Any
    ) -> None:
        self.store = SqlStore(sqlite_url(store_path))
        config = CampaignConfig.model_validate({**CONFIG, **changes})
        texts = {board: (path / "manifest.json").read_text() for board, path in bundles.items()}
        blob = (next(iter(bundles.values())) / "weights.bin").read_bytes()
        self.id = new_campaign(self.store, config, texts, blob)
        self.events: list[ProgressEvent] = []
        assert site.private is not None
        coordinator = Coordinator(
            self.store, store_path, site.superlink, settings=site.private.settings
        )
        self.thread = threading.Thread(
            target=lambda: coordinator.run(self.id, self.events.append), daemon=True
        )
        self.thread.start()

    def has_begun(self, number: int) -> bool:
        return any(one.kind == "round-started" and one.round == number for one in self.events)

    def finish(self) -> str:
        self.thread.join(1800)
        record = self.store.campaign(self.id)
        assert record.state == "finished", record.reason
        return self.store.latest_weights(self.id).sha256


def test_masks_change_no_bit_whoever_drops_out_and_whatever_is_killed(
    private_site: Site, bundles: dict[str, Path], tmp_path: Path
) -> None:
    site = private_site
    assert site.private is not None
    assert site.boards is not None
    masked = Running(site, bundles, tmp_path / "masked.sqlite", **MASKED)
    wait_until(lambda: masked.has_begun(1), "round 1 begins", look_seconds=0.2)
    for name in LEAVING:
        site.boards.power_off(name)
    site.private.unmasker.kill()
    wait_until(lambda: site.accepted(masked.id, 1) > 3, "some deltas are there", look_seconds=0.2)
    for gateway in site.gateways.values():
        gateway.kill()
    time.sleep(1.0)
    for gateway in site.gateways.values():
        gateway.start()
    wanted = CONFIG["cohort_size"]
    wait_until(
        lambda: site.accepted(masked.id, 1) == wanted, "all deltas are there", look_seconds=0.2
    )
    time.sleep(5.0)
    assert not masked.has_begun(2), "nothing is made of what can't be read"
    site.private.unmasker.start()
    after_masks = masked.finish()
    for number in (1, 2):
        result = masked.store.round(masked.id, number).result
        assert result["counted"] == wanted, result["sets"]
        assert all(one["counted"] for one in result["sets"])
        assert sorted(one["devices"] for one in result["sets"]) == [6, 15]
        if number == 1:
            assert set(result["missing"]) == set(LEAVING)
    masked.store.close()

    plain = Running(site, bundles, tmp_path / "plain.sqlite")
    assert plain.finish() == after_masks, "bit for bit"
    plain.store.close()
