"""The ε that stands under an accuracy is what the accountant says of that campaign."""

from __future__ import annotations

import pytest

from benchmarks.privacy import accuracy
from fleet.campaign import CampaignConfig
from fleet.campaign.privacy import first_clip, round_privacy
from fleet.privacy import epsilon


@pytest.mark.parametrize("devices", [100, 1000])
def test_a_row_costs_what_it_says(devices: int) -> None:
    config = accuracy.experiment(devices, "biases", seeds=1)
    seen = set()
    for name, fields in accuracy.strategies(devices):
        assert name in config.strategies
        campaign = CampaignConfig.model_validate({"name": "x", "rounds": accuracy.ROUNDS, **fields})
        if campaign.privacy is None:
            continue
        place, _, wanted = name.partition("-")
        seen.add((place, float(wanted)))
        assert campaign.masking is not None
        privacy = campaign.privacy
        says = round_privacy(privacy, campaign.masking, first_clip(privacy), 980)
        spent = epsilon(accuracy.ROUNDS * says.rho, privacy.delta)
        assert 0.99 * float(wanted) < spent <= float(wanted) * (1 + 1e-5)
        sets = accuracy.sets_of(devices) if place == "devices" else 1
        public = epsilon(accuracy.ROUNDS * says.public_rho(sets, 980), privacy.delta)
        assert public == pytest.approx(
            accuracy.public_epsilon(devices, privacy.noise_multiplier, place), rel=1e-2
        )
    assert len(seen) == 6
