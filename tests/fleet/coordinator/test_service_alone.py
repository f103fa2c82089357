"""The coordinator without a SuperLink to speak to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.campaign import CampaignConfig
from fleet.coordinator.driver import new_campaign
from fleet.coordinator.service import Coordinator
from fleet.coordinator.superlink import SuperLink
from fleet.errors import FlowerError
from fleet.store import SqliteStore
from tests.fleet.coordinator import small_model


def test_a_superlink_that_never_answers_is_given_up_and_the_campaign_kept(tmp_path: Path) -> None:
    path = tmp_path / "campaign.sqlite"
    store = SqliteStore(path)
    campaign = new_campaign(
        store, CampaignConfig(name="x"), small_model.manifest_texts("a"), small_model.blob()
    )
    coordinator = Coordinator(
        store, path, SuperLink(tmp_path / "flower"), restart_superlink=False, refusal_seconds=0.5
    )
    with pytest.raises(FlowerError, match="run the campaign again"):
        coordinator.run(campaign)
    assert store.campaign(campaign).state == "pending"
    store.close()
