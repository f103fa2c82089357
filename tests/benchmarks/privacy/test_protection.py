"""What devices of the harness send: that it is what masking.md says of devices."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.privacy.protection import Fault, Protection, clipped, devices_of, observe, private
from fleet.protocol.masking import MaskParameters

MASKS = Protection("masks", masked=True)


def deltas(count: int, values: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(-90, 91, values) for _ in range(count)]


@pytest.mark.parametrize("clip", [1, 7, 40, 300])
def test_a_clipped_delta_is_never_longer_than_the_clip_and_points_the_same_way(clip: int) -> None:
    parameters = MaskParameters(32, 1000, clip)
    for seed, one in enumerate(deltas(20, 200, seed=1)):
        found = clipped(one, parameters, seed)
        assert int(found @ found) <= clip**2
        if clip >= 40:
            cosine = found @ one / np.linalg.norm(found) / np.linalg.norm(one)
            assert cosine > 0.9


def test_a_delta_within_clip_and_bound_is_sent_as_it_is() -> None:
    (one,) = deltas(1, 50, seed=2)
    assert np.array_equal(clipped(one, MaskParameters(32, 90, clip=10_000), 1), one)
    assert np.abs(clipped(one, MaskParameters(32, 5), 1)).max() == 5


def test_clipping_is_right_in_the_mean() -> None:
    (one,) = deltas(1, 200, seed=3)
    parameters = MaskParameters(32, 1000, clip=100)
    mean = np.mean([clipped(one, parameters, seed) for seed in range(2000)], axis=0)
    wanted = one * ((mean @ one) / (one @ one))
    # 2,000 roundings to whole numbers: the mean's deviation is 0.011 at most.
    assert np.abs(mean - wanted).max() < 0.06


def test_the_sum_of_masked_deltas_is_that_of_the_plain_ones() -> None:
    sent = deltas(16, 300, seed=4)
    view = observe(sent, devices_of(1, 16), MASKS, (1,))
    assert np.array_equal(view.total, np.sum(sent, axis=0))
    assert not np.array_equal(view.messages[0], sent[0])


def test_a_masked_message_is_uniform_and_no_other_one_twice() -> None:
    nothing = [np.zeros(20_000, np.int64)] * 2
    devices = devices_of(1, 2)
    first, again = (observe(nothing, devices, MASKS, (1, at)).messages[0] for at in (0, 1))
    bits = MASKS.parameters(2).bits
    counts = np.histogram(first, 64, (-(1 << bits - 1), 1 << bits - 1))[0]
    # 63 degrees of freedom: more than 103 comes once in a thousand.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 103
    assert np.mean(first == again) < 0.01


def test_noise_in_a_sum_has_the_variance_that_its_ledger_counts_with() -> None:
    protection = private(4.0, 1, clip=200)
    nothing = [np.zeros(4000, np.int64)] * 4
    total = observe(nothing, devices_of(1, 4), protection, (1,)).total
    wanted = (protection.noise_multiplier * 200) ** 2
    assert total.var() == pytest.approx(wanted, rel=0.1)
    halved = observe(nothing, devices_of(1, 4, Fault.NOISE_HALVED), protection, (1,)).total
    assert halved.var() == pytest.approx(wanted / 4, rel=0.1)
