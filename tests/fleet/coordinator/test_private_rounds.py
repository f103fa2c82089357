"""Private campaigns through the driver, the gateway and the unmasker that ship."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from fleet.aggregation import init
from fleet.campaign import CampaignConfig, Operation, RoundOutcome, RoundPlan
from fleet.campaign.privacy import SPENT, RoundPrivacy
from fleet.coordinator.closing import close_round
from fleet.privacy import epsilon
from fleet.store import Ledger, SqlStore, tables
from tests.fleet.coordinator.direct_transport import PowerCutError
from tests.fleet.coordinator.masked_site import (
    BLOB,
    MANIFEST,
    MaskedSite,
    SiteTransport,
    drive,
    masked_campaign,
)
from tests.fleet.coordinator.test_masked_rounds import assert_bit_equal_to_plain, plain_weights

RHO = 0.125
"""Of a round with a multiplier of 2."""


def said(**privacy: Any) -> dict[str, Any]:
    """A campaign's fields."""
    return {
        "aggregation": {"rule": "fedavg"},
        "privacy": {"clip": 40, "noise_multiplier": 2.0, "delta": 1e-2, **privacy},
    }


def plan_of(store: SqlStore, campaign: str, number: int) -> RoundPlan:
    return RoundPlan.from_json(store.round(campaign, number).plan)


def privacy_of(store: SqlStore, campaign: str, number: int) -> RoundPrivacy:
    says = plan_of(store, campaign, number).privacy
    assert says is not None
    return says


ONE_ROUND = said(budget_epsilon=epsilon(RHO, 1e-2) + 1e-3)
"""Devices that have trained once are asked no more."""


def spend_elsewhere(store: SqlStore, like: str, names: list[str]) -> None:
    """Another campaign has a round with these devices."""
    store.create_campaign("b" * 16, store.campaign(like).config, {}, store.weights(like, 0))
    plan = {"assignments": [{"device": one} for one in names], "privacy": {"rho": RHO}}
    store.begin_round("b" * 16, "", 1, "train", plan)


class CutTransport(SiteTransport):
    """The power goes when so many messages that begin rounds have gone out."""

    def __init__(self, site: MaskedSite, dies_at: int) -> None:
        self.left = dies_at
        super().__init__(site)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START:
            if self.left == 0:
                raise PowerCutError
            self.left -= 1
        super().send(gateway, operation, fields)


@pytest.mark.parametrize("cut", [0, 1])
def test_what_a_round_costs_is_in_the_ledger_before_a_task_goes_out_and_once(
    tmp_path: Path, cut: int
) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=6)
    everybody = set(site.devices)
    with masked_campaign(site, rounds=2, **said()) as (store, campaign):
        with pytest.raises(PowerCutError):
            drive(site, store, campaign, CutTransport(site, cut))
        ledger = Ledger(store)
        begun = dict.fromkeys(everybody, (cut + 1) * RHO)
        assert ledger.spent(everybody) == pytest.approx(begun, rel=1e-3)
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert ledger.spent(everybody) == pytest.approx(dict.fromkeys(everybody, 2 * RHO), rel=1e-3)
        assert_bit_equal_to_plain(site, store, campaign)
        told = store.round(campaign, 2).result["privacy"]
        assert told["rho"] == privacy_of(store, campaign, 2).rho
        assert "scores" in told["not_covered"]
    site.close()


def test_devices_hear_of_clip_and_noise_in_their_signed_tasks(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=6)
    with masked_campaign(site, **said()) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        plan = plan_of(store, campaign, 1)
        assert plan.masks is not None
        assert plan.masks.parameters.clip == 40
        assert plan.masks.parameters.noise_variance == math.ceil((2 * 40) ** 2 / 3)
        assert plan.masks.parameters.least_devices == 3
        # What left the devices had their noise: what is clipped alone has no such values.
        values = np.concatenate([v for one in site.devices.values() for v in one.masked.values()])
        assert np.abs(values).max() > 2 * plan.masks.parameters.clip
    site.close()


def test_a_device_that_has_spent_its_budget_isnt_asked(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=8)
    names = sorted(site.devices)
    budget = epsilon(2 * RHO, 1e-2) + 1e-3
    with masked_campaign(site, rounds=2, **said(budget_epsilon=budget)) as (store, campaign):
        spend_elsewhere(store, campaign, names[:2])
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        first, second = plan_of(store, campaign, 1), plan_of(store, campaign, 2)
        assert {one.device for one in first.assignments} == set(names)
        assert {one.device for one in second.assignments} == set(names[2:])
        assert second.skipped == dict.fromkeys(names[:2], SPENT)
        assert max(Ledger(store).spent(names).values()) <= 2 * RHO * (1 + 1e-6)
    site.close()


def test_budgets_are_looked_at_again_when_devices_that_another_campaign_had_are_leased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=8)
    names = sorted(site.devices)
    with masked_campaign(site, **ONE_ROUND) as (store, campaign):
        take = store.take_leases

        def spends_first(*asked: Any) -> Any:
            if "b" * 16 not in {one.id for one in store.campaigns()}:
                spend_elsewhere(store, campaign, names[:2])
            return take(*asked)

        monkeypatch.setattr(store, "take_leases", spends_first)
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        plan = plan_of(store, campaign, 1)
        assert plan.skipped == dict.fromkeys(names[:2], SPENT)
        assert max(Ledger(store).spent(names).values()) <= RHO * (1 + 1e-6)
    site.close()


@pytest.mark.parametrize("is_killed", [False, True])
def test_where_budgets_are_spent_training_ends_and_what_was_trained_is_released(
    tmp_path: Path, is_killed: bool
) -> None:
    """What was left out isn't trained later, when a release has begun: not even by another driver
    that finds devices with budget left."""
    site = MaskedSite(tmp_path, seed=1, devices=4)
    changes = {**ONE_ROUND, "score_first": True, "last_round": "release"}
    with masked_campaign(site, rounds=3, wait_for_devices_seconds=30, **changes) as (
        store,
        campaign,
    ):
        if is_killed:
            with pytest.raises(PowerCutError):
                drive(site, store, campaign, CutTransport(site, dies_at=2))
            with store.writing() as connection:
                connection.execute(sa.delete(tables.ledger))
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        kinds = [one.kind for one in store.rounds(campaign)]
        assert kinds == ["score-first", "train", "release"]
        assert store.campaign(campaign).reason == f"trained 1 of 3 rounds: {SPENT}"
        assert store.latest_weights(campaign).version == 1
        released = plan_of(store, campaign, 4)
        assert released.weights == store.latest_weights(campaign).sha256
        assert {one.device for one in released.assignments} == set(site.devices)
        if not is_killed:
            spent = privacy_of(store, campaign, 1).rho
            assert Ledger(store).spent(site.devices) == dict.fromkeys(site.devices, spent)
    site.close()


def test_a_campaign_that_could_train_nothing_for_its_devices_budget_fails_and_says_so(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=4)
    with masked_campaign(site, wait_for_devices_seconds=30, **ONE_ROUND) as (store, campaign):
        spend_elsewhere(store, campaign, list(site.devices))
        assert drive(site, store, campaign, SiteTransport(site)) == "failed"
        reason = store.campaign(campaign).reason
        assert SPENT in reason
        assert "privacy.budget_epsilon" in reason
        assert not list(store.rounds(campaign))
    site.close()


def test_the_coordinators_noise_is_in_what_is_stored_and_not_drawn_anew(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=6)
    keys: list[bytes] = []

    def entropy(size: int) -> bytes:
        keys.append(bytes([len(keys) + 1]) * size)
        return keys[-1]

    site.holders = replace(site.holders, entropy=entropy)
    fields = said(noise="coordinator", clip=3000)
    with masked_campaign(site, **fields) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        plan = plan_of(store, campaign, 1)
        assert plan.masks is not None
        assert plan.masks.parameters.noise_variance == 0, "devices add none"
        state = init(MANIFEST.tensors, BLOB)
        plain = plain_weights(site, store, campaign, 1, state).master
        stored = store.latest_weights(campaign)
        difference = np.frombuffer(stored.master, "<f8") - plain
        assert np.count_nonzero(difference) > difference.size / 2
        drawn = len(keys)
        assert drawn >= 1
        # Whoever closes it once more gets what is stored, whatever noise they have drawn.
        config = CampaignConfig.parse(store.campaign(campaign).config)
        record = store.claim(campaign, "late")
        manifests = {MANIFEST.bundle_id: MANIFEST}
        nothing = RoundOutcome({}, {}, False)
        base = store.weights(campaign, 0)
        again = close_round(store, campaign, record.driver, config, manifests, plan, nothing, base)
        assert again == store.round(campaign, 1).result
        assert store.latest_weights(campaign) == stored
    site.close()


def test_the_clip_follows_what_devices_say_of_their_norms(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=12)
    # These devices all say that their norm is within the clip; there is next to no noise.
    fields = said(noise_multiplier=0.01, clip=400, adaptive={"quantile": 0.5, "rate": 0.2})
    with masked_campaign(site, rounds=3, **fields) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        says = [privacy_of(store, campaign, number) for number in (1, 2, 3)]
        clips = [one.clip for one in says]
        assert clips == pytest.approx([400 * math.exp(-0.1 * number) for number in range(3)], abs=2)
        assert store.round(campaign, 3).result["privacy"]["share_within"] == pytest.approx(
            1, abs=0.1
        )
        assert [one.norm_share for one in says] == [clip // 4 for clip in clips]
    site.close()
