"""What is computed beside a fleet is what its devices compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.virtual.offline import (
    ScoreDevice,
    TrainAlone,
    pooled_samples,
    score_never_trained,
    trained_delta,
)
from simulator.virtual.pool import LocalPool
from simulator.virtual.population import Firmware, Population
from simulator.world.draws import generator
from tests.simulator.virtual.small_fleet import CAMPAIGN, campaign, population, run

Made = dict[str, Firmware]


def weights(of: Population) -> bytes:
    (firmware,) = of.firmware.values()
    return (firmware.bundle / "weights.bin").read_bytes()


def test_a_version_scores_as_devices_say_that_it_does(made: Made, tmp_path: Path) -> None:
    of = population(made, 5)
    pool = LocalPool(of)
    fleet = run(of, pool, tmp_path, campaign(rounds=2, min_devices=5))
    try:
        versions = [fleet.store.weights(CAMPAIGN, number).blob for number in (0, 1)]
        for number, version in enumerate(versions, 1):
            said = {
                report["device"]: (report["held_out"], report["correct_before"])
                for report in fleet.store.reports(CAMPAIGN, number)
            }
            scores = pool.each(ScoreDevice(version), of.numbers)
            assert {of.spec(one).device: tuple(score) for one, score in scores.items()} == said
    finally:
        fleet.close()


def test_a_device_alone_learns_its_own_samples(made: Made) -> None:
    turned = {"kind": "image", "rotation_degrees": 30.0}
    dataset = {"dataset": {"name": "digits"}, "samples_per_device": 60, "sensor": turned}
    of = population(made, 4, data=dataset)
    job = TrainAlone(weights(of), "small", rounds=6, epochs=2, learning_rate=0.02, seed=1)
    runs = [LocalPool(of).each(job, of.numbers) for _ in range(2)]
    assert runs[0] == runs[1]
    first, last = (sum(scores[at].correct for scores in runs[0].values()) for at in (0, -1))
    assert last > first
    assert all(len(scores) == 7 for scores in runs[0].values())


def test_all_samples_together_are_those_of_all_devices_but_what_they_hold_out(made: Made) -> None:
    of = population(made, 3)
    pooled = pooled_samples(of)
    assert len(pooled.labels) == 3 * 8  # of 12 samples, 4 are held out
    held_out = [of.held_out_of_device(number) for number in of.numbers]
    assert sum(len(one.labels) for one in held_out) == 3 * 4
    random = generator(1, "test")
    delta = trained_delta(of, "small", weights(of), pooled, 1, 0.02, random)
    assert delta.any()
    same = trained_delta(of, "small", weights(of), pooled, 1, 0.02, generator(1, "test"))
    assert np.array_equal(delta, same)


def test_who_never_trains_is_scored_on_all_of_its_samples(made: Made) -> None:
    data = {
        "dataset": {"name": "digits"},
        "samples_per_device": 12,
        "held_out_share": 0.1,
        "held_out_devices": 3,
    }
    of = population(made, 2, data=data)
    scores = score_never_trained(of, weights(of))
    assert [one.samples for one in scores] == [12, 12, 12]
    assert all(0 < one.correct <= 12 for one in scores)
