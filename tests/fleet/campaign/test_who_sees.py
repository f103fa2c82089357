"""What people are told of who could see what."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.campaign import CampaignConfig
from fleet.campaign.who_sees import Setting, who_sees


def told(setting: Setting, **fields: Any) -> dict[str, str]:
    config = CampaignConfig.model_validate({"name": "one", **fields})
    return {one.who: one.sees for one in who_sees(config, setting)}


def test_without_masks_a_gateway_sees_each_device_and_is_said_to() -> None:
    lines = told(Setting())
    assert lines["broker and gateways"] == "each device's changes of the weights"
    assert "signs no tasks" in lines["whoever has the broker or a gateway"]


def test_with_one_owner_masks_are_separation_of_duty_alone() -> None:
    lines = told(Setting(True, ("",)), coding="masked", masking={"least_devices": 7})
    assert "one owner" in lines["you"]
    assert "you can, if you want to" in lines["you"]
    assert lines["coordinator"] == "sums of sets of 7 devices and more, never of fewer"
    assert "delay and drop tasks, and make none" in lines["whoever has the task key"]


@pytest.mark.parametrize("operators", [("the vets", ""), ("", "the vets"), ("the vets",)])
def test_where_others_run_an_unmasker_it_takes_them_as_well(operators: tuple[str, ...]) -> None:
    lines = told(Setting(True, operators), coding="masked")
    assert "you" not in lines
    assert "every unmasker" in lines["you and the vets together"]


def test_scores_and_participation_are_never_hidden_and_always_said() -> None:
    for fields in ({}, {"coding": "masked"}):
        lines = told(Setting(True, ("",)), **fields)
        assert "scores, losses" in lines["broker, gateways, coordinator"]


def test_a_masked_campaign_without_an_unmasker_is_told_that_nothing_comes_of_it() -> None:
    assert "rounds wait" in told(Setting(), coding="masked")["nobody yet"]
