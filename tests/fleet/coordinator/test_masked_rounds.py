"""Masked campaigns through the driver, the gateway and the unmasker that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.aggregation import MasterState, init, plan_sum_from_manifest
from fleet.campaign import CampaignConfig, RoundPlan
from fleet.store import SqlStore
from tests.fleet.coordinator.masked_site import (
    BLOB,
    MANIFEST,
    PLANS,
    MaskedSite,
    SiteTransport,
    drive,
    masked_campaign,
)


def plain_weights(
    site: MaskedSite, store: SqlStore, campaign: str, number: int, before: MasterState
) -> MasterState:
    """The weights after a round over the deltas that were counted, in the sets that were, as the
    devices had them before their masks; by the rule and nothing else of the masked way."""
    record = store.round(campaign, number)
    plan = RoundPlan.from_json(record.plan)
    assert plan.masks is not None
    config = CampaignConfig.parse(store.campaign(campaign).config)
    crcs = site.ask("collect", campaign=campaign, round=number)
    assert crcs["accepted"] == record.result["accepted"]
    counted = {(one["plan"], one["part"]) for one in record.result["sets"] if one["counted"]}
    parts: list[list[Any]] = [[] for _ in range(plan.masks.parts)]
    members: dict[tuple[str, int], dict[str, int]] = {}
    key = (bytes.fromhex(campaign), number)
    for one in plan.assignments:
        crc32 = site.store.counted(key, one.device)
        if crc32 is not None and (one.plan, one.part) in counted:
            members.setdefault((one.plan, one.part), {})[one.device] = crc32
    for (plan_id, part), of in members.items():
        values = site.plain_sum(of).astype("<i8").tobytes()
        entry = PLANS[plan_id]
        parts[part].append(plan_sum_from_manifest(MANIFEST, entry, values, len(of)))
    return config.aggregation.apply(before, config.aggregation.of_sets(parts))


def assert_bit_equal_to_plain(site: MaskedSite, store: SqlStore, campaign: str) -> None:
    state = init(MANIFEST.tensors, BLOB)
    for record in store.rounds(campaign):
        if record.kind == "train":
            state = plain_weights(site, store, campaign, record.number, state)
    stored = np.frombuffer(store.latest_weights(campaign).master, "<f8")
    assert np.array_equal(stored, state.master)
    assert state.applied == store.latest_weights(campaign).version


def sets_of(store: SqlStore, campaign: str, number: int = 1) -> list[dict[str, Any]]:
    return list(store.round(campaign, number).result["sets"])


@pytest.mark.parametrize("unmaskers", [1, 3])
def test_a_masked_round_is_bit_equal_to_the_plain_one(tmp_path: Path, unmaskers: int) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=12, unmaskers=unmaskers)
    with masked_campaign(site, rounds=2) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        assert [one["devices"] for one in sets_of(store, campaign)] == [3, 3, 3, 3]
        result = store.round(campaign, 2).result
        assert result["rule"] == "median over 4 sets"
        assert result["counted"] == 12
        assert not any(device.forgeries for device in site.devices.values())
    site.close()
