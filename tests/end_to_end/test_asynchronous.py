"""An asynchronous campaign over Flower, brokers and gateways as they run at a site."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.campaign.config import Asynchronous, CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.service import Coordinator
from fleet.demo.site import Site
from fleet.store import Events, SqlStore, sqlite_url
from tests.end_to_end.conftest import DEVICES, SEED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

VERSIONS = 4
CONFIG = CampaignConfig(
    name="arrivals",
    seed=SEED,
    rounds=VERSIONS,
    epochs=2,
    learning_rate=0.005,
    deadline_seconds=900,
    min_devices=len(DEVICES),
    plans=("small", "middle"),
    score_first=False,
    last_round="release",
    asynchronous=Asynchronous(buffer=2),
)


def test_versions_are_made_of_what_has_arrived_at_two_gateways(
    site: Site, bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "campaign.sqlite"
    store = SqlStore(sqlite_url(path))
    texts = {board: (folder / "manifest.json").read_text() for board, folder in bundles.items()}
    weights = (next(iter(bundles.values())) / "weights.bin").read_bytes()
    name = new_campaign(store, CONFIG, texts, weights)
    Coordinator(store, path, site.superlink).run(name, lambda event: None)
    record = store.campaign(name)
    assert record.state == "finished", record.reason
    told = [one.data for one in Events(store).after(0, name, kinds=["version"])]
    assert [one["version"] for one in told] == list(range(1, VERSIONS + 1))
    assert all(1 <= one["deltas"] <= len(DEVICES) for one in told)
    last: dict[tuple[int, str], int] = {}
    for part in store.parts(name):
        last[part.round, part.gateway] = part.through
    assert sum(last.values()) == sum(one["deltas"] for one in told)
    assert {gateway for _, gateway in last} == {"gw-1", "gw-2"}
    rounds = store.rounds(name)
    assert {one.state for one in rounds} == {"done"}
    digests = [store.weights(name, version).sha256 for version in range(VERSIONS + 1)]
    assert len(set(digests)) == VERSIONS + 1
    assert rounds[-1].kind == "release"
    assert rounds[-1].plan["weights"] == digests[-1]
    assert rounds[-1].result["accepted"] == len(DEVICES)
