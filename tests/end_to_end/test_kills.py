"""Every service is killed in the middle of a round, and a device while it trains.

Afterwards the campaign has finished, and every accepted delta is in the weights exactly once: the
new weights are those that the sums kept by the gateways give, and those sums are made of exactly
the reported deltas.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fleet.aggregation import FedAvg, MasterState, blob_from_master, plan_sum_from_manifest
from fleet.campaign.config import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.service import Coordinator, ProgressEvent
from fleet.demo.site import Site
from fleet.gateway.client import GatewayClient
from fleet.protocol.manifest import Manifest
from fleet.store import SqlStore, sqlite_url
from tests.end_to_end.conftest import DEVICES, SEED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TRAINING_SECONDS = 900.0  # ten in calm; other programs can take most of a machine
CONFIG = CampaignConfig(
    name="kill-test",
    seed=SEED,
    rounds=2,
    epochs=30,  # so that a device trains for some seconds even on a fast machine
    learning_rate=0.005,
    deadline_seconds=3600,  # never reached, however busy the machine is
    min_devices=len(DEVICES),
    plans=("small", "middle"),
)


class Campaign:
    """A campaign in a thread, which hears of its progress."""

    def __init__(self, site: Site, bundles: dict[str, Path], store_path: Path) -> None:
        self.site = site
        self.store = SqlStore(sqlite_url(store_path))
        texts = {board: (path / "manifest.json").read_text() for board, path in bundles.items()}
        self.manifests = {board: Manifest.parse(text) for board, text in texts.items()}
        blob = (next(iter(bundles.values())) / "weights.bin").read_bytes()
        self.id = new_campaign(self.store, CONFIG, texts, blob)
        self.events: list[ProgressEvent] = []
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._coordinator = Coordinator(self.store, store_path, site.superlink)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._coordinator.run(self.id, self._hear)
        except BaseException as error:
            self.error = error
        with self._changed:
            self._changed.notify_all()

    def _hear(self, event: ProgressEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[ProgressEvent], bool]) -> None:
        """Until such an event was heard."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.error is not None or any(map(wanted, self.events)), TRAINING_SECONDS
            ), f"not heard of in {TRAINING_SECONDS} s; so far {self.events}"
        assert self.error is None, self.error

    def wait_for_training(self) -> str:
        """Until a device trains in round 1; its name."""
        self.wait_for(lambda event: event.kind == "round-started" and event.round == 1)
        end = time.monotonic() + TRAINING_SECONDS
        while time.monotonic() < end:
            for gateway in self.site.gateways.values():
                for device in GatewayClient(gateway.socket).hello()["devices"]:
                    if device["state"] == "training":
                        return str(device["device"])
            time.sleep(0.02)
        raise AssertionError("no device trained")

    def wait_for_delta(self) -> None:
        """Until a gateway has accepted a delta of round 1."""
        self.wait_for(lambda event: event.kind == "round-started" and event.round == 1)
        end = time.monotonic() + TRAINING_SECONDS
        while time.monotonic() < end:
            for gateway in self.site.gateways.values():
                if GatewayClient(gateway.socket).collect(self.id, 1).get("accepted", 0) > 0:
                    return
            time.sleep(0.02)
        raise AssertionError("no delta came")

    def finish(self) -> None:
        """Until it has ended, as it should."""
        self._thread.join(3000)
        assert not self._thread.is_alive(), f"still running; so far {self.events}"
        assert self.error is None, self.error
        record = self.store.campaign(self.id)
        assert record.state == "finished", record.reason


@pytest.fixture
def campaign(site: Site, bundles: dict[str, Path], tmp_path: Path) -> Iterator[Campaign]:
    running = Campaign(site, bundles, tmp_path / "campaign.sqlite")
    yield running
    running.store.close()


def assert_nothing_lost_or_doubled(campaign: Campaign) -> None:
    store, manifest = campaign.store, next(iter(campaign.manifests.values()))
    plans = {plan.id: plan for one in campaign.manifests.values() for plan in one.plans}
    version = store.weights(campaign.id, 0)
    for number in range(1, CONFIG.rounds + 1):
        reports = store.reports(campaign.id, number)
        per_device = Counter(report["device"] for report in reports)
        assert set(per_device) <= set(DEVICES)
        assert max(per_device.values()) == 1, f"round {number}: a device counted twice"
        assert store.round(campaign.id, number).result["accepted"] == len(reports)
        sums, samples = [], Counter[str]()
        for gateway in campaign.site.gateways.values():
            answer = GatewayClient(gateway.socket).collect(campaign.id, number)
            own = [r for r in reports if r["gateway"] == gateway.gateway]
            assert answer["accepted"] == len(own), f"round {number}, {gateway.gateway}"
            for plan, (one,) in answer["sums"].items():
                mine = [r for r in own if r["plan"] == plan]
                assert one["devices"] == len(mine)
                assert one["weight"] == sum(r["train_samples"] for r in mine)
                samples[plan] += one["weight"]
                sums.append(
                    plan_sum_from_manifest(manifest, plans[plan], one["values"], one["weight"])
                )
        assert sum(samples.values()) > 0
        state = MasterState(
            tuple(manifest.tensors), np.frombuffer(version.master, "<f8").copy(), version.version
        )
        state = FedAvg().apply(state, [sums])
        blob = blob_from_master(state.layout, state.master, len(version.blob))
        version = store.weights(campaign.id, number)
        assert hashlib.sha256(blob).hexdigest() == version.sha256, f"weights of round {number}"
    assert store.latest_weights(campaign.id).version == CONFIG.rounds


def assert_everyone_took_part(campaign: Campaign) -> None:
    for number in range(CONFIG.rounds + 2):
        reports = campaign.store.reports(campaign.id, number)
        assert sorted(report["device"] for report in reports) == DEVICES, f"round {number}"


def test_a_campaign_without_faults_counts_every_device_in_every_round(campaign: Campaign) -> None:
    campaign.finish()
    assert_everyone_took_part(campaign)
    assert_nothing_lost_or_doubled(campaign)


def test_the_broker_is_killed_mid_round_and_comes_back(campaign: Campaign) -> None:
    campaign.wait_for_training()
    campaign.site.broker.kill()
    time.sleep(2.0)
    campaign.site.broker.start()
    campaign.finish()
    assert_everyone_took_part(campaign)
    assert_nothing_lost_or_doubled(campaign)


def test_a_gateway_with_accepted_deltas_is_killed_mid_round_and_comes_back(
    campaign: Campaign,
) -> None:
    campaign.wait_for_delta()
    for gateway in campaign.site.gateways.values():
        gateway.kill()
    time.sleep(1.0)
    for gateway in campaign.site.gateways.values():
        gateway.start()
    campaign.finish()
    assert_everyone_took_part(campaign)
    assert_nothing_lost_or_doubled(campaign)


def test_the_superlink_is_killed_mid_round_and_comes_back(campaign: Campaign) -> None:
    campaign.wait_for_training()
    campaign.site.superlink.kill()
    campaign.finish()  # the coordinator starts it again, as a service manager would
    assert_everyone_took_part(campaign)
    assert_nothing_lost_or_doubled(campaign)


def test_a_device_is_reset_while_it_trains_and_does_its_round_again(campaign: Campaign) -> None:
    device = campaign.wait_for_training()
    assert campaign.site.boards is not None
    campaign.site.boards.power_cycle(device)
    campaign.finish()
    assert_everyone_took_part(campaign)
    assert_nothing_lost_or_doubled(campaign)
