"""Attacks work on what nothing protects, and protection takes that away."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.privacy import crafted, inversion, membership
from benchmarks.privacy.inversion import SET, Attacker, pixels, score, targets
from benchmarks.privacy.protection import Protection
from benchmarks.privacy.studies import MASKS, NONE, protections
from benchmarks.privacy.victims import Victim, public_samples


def seen(victim: Victim, plan: str, of: inversion.Targets, protection: Protection) -> np.ndarray:
    return np.stack(list(inversion.observations(victim, plan, of, protection)))


def test_a_plan_that_trains_biases_alone_gives_away_less_than_one_that_trains_weights(
    demo: Victim,
) -> None:
    of = targets(demo, [1, 2], 12)
    explained = {}
    for plan in ("bias", "middle"):
        learned = Attacker(demo, plan, public=500).learn(NONE)
        found = learned.pictures(seen(demo, plan, of, NONE), of.share.labels)
        explained[plan] = score(found, pixels(of.share), learned.means[of.share.labels]).explained
    assert explained["middle"] > 0.1
    assert explained["bias"] < explained["middle"] - 0.05


@pytest.mark.parametrize("protection", protections("middle")[1:], ids=lambda one: one.name)
def test_a_protected_sum_gives_no_more_away_than_the_class(
    demo: Victim, protection: Protection
) -> None:
    of = targets(demo, [1], 6)
    learned = Attacker(demo, "middle", public=300).learn(protection)
    found = learned.pictures(seen(demo, "middle", of, protection), of.share.labels)
    assert score(found, pixels(of.share), learned.means[of.share.labels]).explained < 0.05


def test_a_first_layer_that_is_fully_connected_gives_the_picture_away(layered: Victim) -> None:
    of = targets(layered, [1], 8)
    learned = Attacker(layered, "dense-full", public=300).learn(NONE)
    found = [
        inversion.analytic(layered, "dense-full", one, label, learned)
        for one, label in zip(
            seen(layered, "dense-full", of, NONE), of.share.labels.tolist(), strict=True
        )
    ]
    pairs = zip(found, pixels(of.share), strict=True)
    assert np.median([np.corrcoef(one, true)[0, 1] for one, true in pairs]) > 0.98


def test_matching_finds_a_picture_whose_delta_is_far_nearer_than_that_of_its_beginning(
    demo: Victim,
) -> None:
    attacker = Attacker(demo, "small", public=300)
    learned = attacker.learn(NONE)
    share = public_samples(demo, 4, seed=9)
    deltas = np.stack([demo.delta("small", share.only(at), at) for at in range(len(share))])
    begun = learned.pictures(deltas, share.labels)
    apart = np.zeros(2)
    for delta, label, start in zip(deltas, share.labels.tolist(), begun, strict=True):
        found = attacker.matched(delta, label, learned)
        apart += [np.sum((attacker.delta_of(one, label) - delta) ** 2) for one in (found, start)]
    assert apart[0] < apart[1] / 2


def test_who_sends_a_delta_is_known_until_it_is_masked(demo: Victim) -> None:
    plain, masked = (
        membership.in_messages_and_sums(demo, "small", one, [1], each=12) for one in (NONE, MASKS)
    )
    assert plain["delta"].auc > 0.95
    assert 0.25 < masked["delta"].auc < 0.75
    # The sum is the same one.
    assert masked["sum"] == plain["sum"]


def test_membership_is_half_where_scores_are_alike_and_whole_where_they_are_apart() -> None:
    assert membership.membership([1.0, 2.0], [1.0, 2.0]).auc == 0.5
    apart = membership.membership([3.0, 4.0], [1.0, 2.0])
    assert (apart.auc, apart.found_at_few) == (1.0, 1.0)


def test_crafted_weights_take_pictures_out_of_masked_sums_and_noise_keeps_them(
    layered: Victim,
) -> None:
    _, masks, noise = protections(crafted.PLAN)
    open_, hidden = (crafted.attack(layered, one, SET, seed=1) for one in (masks, noise))
    assert open_.recovered >= 2
    assert open_.decoys == 0
    assert hidden.recovered == 0
    assert open_.declining > open_.devices // 2
