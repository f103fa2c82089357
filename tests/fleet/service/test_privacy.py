"""What the service says of privacy: what was spent, and what a campaign would cost."""

from __future__ import annotations

import pytest

from fleet.campaign.masking import Masking
from fleet.coordinator.creation import new_campaign
from fleet.errors import ConflictError
from fleet.privacy import epsilon
from fleet.service.schema import CampaignToStart, DevicesToAdd, DeviceToAdd
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import SETUP, Site, campaign, private_campaign, seen

RHO = 0.125
"""Of a round of `private_campaign`: 1 / (2 · 2²)."""


def spend(site: Site, devices: list[str], rounds: int, rho: float = RHO, **privacy: float) -> str:
    """A private campaign that has begun rounds with these devices."""
    texts = small_model.manifest_texts("a", "b")
    name = new_campaign(
        site.store, private_campaign(**privacy), texts, small_model.blob(), "ann", "small:1"
    )
    site.store.claim(name, "driver")
    for number in range(1, rounds + 1):
        plan = {
            "assignments": [{"device": one} for one in devices],
            "privacy": {"rho": rho},
        }
        site.store.begin_round(name, "driver", number, "train", plan)
    return name


def test_what_was_spent_is_told_for_each_campaign_and_for_all_together(site: Site) -> None:
    first = spend(site, ["d0", "d1"], 2, budget_epsilon=3.0)
    second = spend(site, ["d0"], 1, delta=1e-6)
    page = site.client("viewer").privacy()
    assert [one.device for one in page.devices] == ["d0", "d1"]
    both, one = page.devices
    assert (both.rho, both.delta) == (3 * RHO, 1e-6)
    assert both.epsilon == epsilon(3 * RHO, 1e-6)
    assert [(of.campaign, of.rounds, of.rho) for of in both.campaigns] == [
        (first, 2, 2 * RHO),
        (second, 1, RHO),
    ]
    of = both.campaigns[0]
    assert of.epsilon == epsilon(2 * RHO, 1e-3) < of.epsilon_of_all == epsilon(3 * RHO, 1e-3)
    assert of.budget_left == pytest.approx(3.0 - of.epsilon_of_all)
    assert both.campaigns[1].budget_left is None
    assert one.epsilon == epsilon(2 * RHO, 1e-3)
    assert "scores" in page.not_covered


def test_the_ledger_is_told_page_by_page_of_a_device_and_of_a_campaign(site: Site) -> None:
    of = spend(site, [f"d{number}" for number in range(5)], 1)
    spend(site, ["d5"], 1)
    client = site.client()
    first = client.privacy(limit=4)
    assert [one.device for one in first.devices] == ["d0", "d1", "d2", "d3"]
    last = client.privacy(after=first.next or "", limit=4)
    assert ([one.device for one in last.devices], last.next) == (["d4", "d5"], None)
    assert [one.device for one in client.privacy(device="d5").devices] == ["d5"]
    assert len(client.privacy(campaign=of).devices) == 5
    assert client.privacy(device="nobody").devices == []


def test_erasing_a_device_leaves_what_it_has_spent(site: Site) -> None:
    spend(site, ["d0"], 1)
    site.operations.retire_device(SETUP, "d0")
    site.operations.erase_device(SETUP, "d0")
    assert [one.device for one in site.client().privacy().devices] == ["d0"]


def test_a_plan_says_what_each_observer_may_learn(site: Site) -> None:
    found = site.client("viewer").plan_privacy(private_campaign(budget_epsilon=3.0))
    coordinator, public = found.observers
    assert (coordinator.observer, public.observer) == ("coordinator", "public")
    assert coordinator.round_rho == pytest.approx(RHO)
    assert coordinator.epsilon == pytest.approx(epsilon(2 * RHO, 1e-3), rel=1e-6)
    assert public.epsilon == coordinator.epsilon, "four devices are one set"
    assert (found.rounds, found.expected_rounds, found.ready, found.cohort) == (2, 2.0, 4, 4)
    assert found.rounds_within_budget == 3
    assert (found.short, found.spent) == (0, 0)
    assert "scores" in found.promise
    trusted = site.client().plan_privacy(private_campaign(noise="coordinator"))
    assert [one.observer for one in trusted.observers] == ["public"]


def test_a_plan_promises_the_public_all_sets_noise_only_if_all_of_them_count(site: Site) -> None:
    numbers = range(100, 700, 2)  # of one board
    devices = [DeviceToAdd(device=f"d{number}", site="home") for number in numbers]
    site.operations.add_devices(SETUP, DevicesToAdd(devices=devices))
    site.operations.registry.observe(
        {f"d{number}": seen(site.operations, number) for number in numbers}
    )
    board = small_model.manifest("a")["board"]["name"]
    changes = {"target": f'board == "{board}"', "masking": Masking(least_devices=100)}
    coordinator, public = (
        site.client().plan_privacy(private_campaign().model_copy(update=changes)).observers
    )
    assert public.round_rho == pytest.approx(coordinator.round_rho / 2)
    assert public.sees == (
        "released weights, if all 2 sets count; as the coordinator where one does"
    )
    trusted = private_campaign(noise="coordinator").model_copy(update=changes)
    (public,) = site.client().plan_privacy(trusted).observers
    assert public.sees == "released weights, made of the sums of all sets"


def test_a_plan_counts_who_has_budget_left_and_warns(site: Site) -> None:
    spend(site, ["d0"], 3)
    spend(site, ["d1"], 2)
    wanted = private_campaign(budget_epsilon=3.0, delta=0.3)
    wanted = wanted.model_copy(update={"masking": Masking(least_devices=5)})
    found = site.client().plan_privacy(wanted)
    said = "; ".join(found.warnings)
    assert "one in 4 devices" in said
    assert "4 devices are too few to hide in each other, 5 are wanted" in said
    found = site.client().plan_privacy(private_campaign(budget_epsilon=3.0))
    assert (found.ready, found.short, found.spent) == (4, 1, 1)
    found = site.client().plan_privacy(private_campaign(budget_epsilon=1.8))
    assert found.rounds_within_budget == 1
    assert "spent after 1 of 2 rounds" in "; ".join(found.warnings)
    found = site.client().plan_privacy(private_campaign())
    assert "for ever" in "; ".join(found.warnings)


def test_a_campaign_without_privacy_has_no_cost_that_could_be_told(site: Site) -> None:
    with pytest.raises(ConflictError, match="has no privacy"):
        site.operations.plan_privacy(SETUP, CampaignToStart(campaign=campaign()))
