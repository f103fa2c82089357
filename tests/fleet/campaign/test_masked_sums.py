"""What an unmasked sum may be: all that devices which clip can have, and hardly more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.campaign.answers import Report
from fleet.campaign.sets import BEYOND_RANGE, MaskedSet, SetOutcome, unmasked
from fleet.privacy import discrete_gaussian
from fleet.protocol.masking import MaskParameters, mask, stream

VALUES = 40
SEED = bytes(range(32))


def outcome(total: np.ndarray, devices: int, parameters: MaskParameters) -> SetOutcome:
    members = tuple(
        Report(
            device=f"mcu-{number}",
            plan="0" * 64,
            train_samples=1,
            held_out=0,
            correct_before=0,
            correct_after=0,
            coded_bytes=0,
            payload_bytes=0,
            seconds=0.0,
        )
        for number in range(devices)
    )
    masked = mask(total.astype(np.int32), [SEED], parameters.bits)
    streams = [stream(SEED, total.size, parameters.bits)]
    return unmasked(MaskedSet("0" * 64, 0, members, masked), streams, parameters)


@given(data=st.data(), devices=st.integers(1, 20), clip=st.integers(1, 300))
def test_no_sum_of_devices_that_clip_is_refused(
    data: st.DataObject, devices: int, clip: int
) -> None:
    """The longest there is: all of them send the same, just as long as the clip."""
    place = data.draw(st.integers(0, VALUES - 1))
    alike = np.zeros(VALUES, np.int64)
    alike[place] = data.draw(st.sampled_from((clip, -clip)))
    found = outcome(devices * alike, devices, MaskParameters(32, 300, clip))
    assert found.values is not None
    assert found.values.tolist() == (devices * alike).tolist()


@given(clip=st.integers(1, 300), devices=st.integers(1, 20))
def test_a_sum_that_is_longer_than_that_counts_nothing_though_each_value_is_in_range(
    clip: int, devices: int
) -> None:
    total = np.zeros(VALUES, np.int64)
    total[:2] = devices * clip, 1
    assert outcome(total, devices, MaskParameters(32, 300, clip)).why == BEYOND_RANGE
    assert outcome(total, devices, MaskParameters(32, 300)).why == ""


def test_the_value_that_says_whether_a_norm_was_clipped_counts_with_the_length() -> None:
    parameters = MaskParameters(32, 300, clip=30, norm_share=40)
    total = np.zeros(VALUES + 1, np.int64)
    total[0], total[-1] = 4 * 30, 4 * 40
    assert outcome(total, 4, parameters).norm_sum == 160
    total[0] += 1
    assert outcome(total, 4, parameters).why == BEYOND_RANGE


@pytest.mark.parametrize("variance", [4, 10_000])
def test_the_devices_own_noise_is_not_held_against_them(variance: int) -> None:
    devices = 4
    parameters = MaskParameters(32, 300, clip=10, noise_variance=variance)
    for at in range(50):
        total = np.zeros(VALUES, np.int64)
        total[0] = devices * 10
        for number in range(devices):
            total += discrete_gaussian(bytes([at, number]) * 16, variance, VALUES)
        assert outcome(total, devices, parameters).values is not None
