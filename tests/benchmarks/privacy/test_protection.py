"""What devices of the harness send: that it is what masking.md says of devices."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.privacy.protection import Fault, Protection, clipped, devices_of, observe, private
from fleet.protocol.masking import MaskParameters
from tests.device_runtime import keyed
from tests.device_runtime.tiny_round import task_for

MASKS = Protection("masks", masked=True)


def deltas(count: int, values: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(-90, 91, values) for _ in range(count)]


@pytest.mark.parametrize("clip", [0, 1, 40, 300, 100_000])
def test_deltas_are_bounded_and_clipped_as_devices_do_it(clip: int) -> None:
    """The other one is the oracle that the device's C is compared with."""
    parameters = MaskParameters(32, value_bound=80, clip=clip)
    for seed, one in enumerate(deltas(5, 200, seed=1)):
        task = task_for(bytes(32), bytes(4), value_bound=80, clip=clip, seed=seed)
        assert clipped(one, parameters, seed).tolist() == keyed.clipped(one.tolist(), task)


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
