"""How the digits are dealt: fixed lab part, disjoint shares, seeded drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.world import digits

NAMES = [f"device-{number:02d}" for number in range(24)]
CALIBRATION = Path(__file__).parents[3] / "examples" / "digits" / "calibration.npz"


def test_the_lab_part_and_the_rest_share_no_digit_and_leave_none_out() -> None:
    lab, rest = digits.lab_split()
    assert len(lab) == digits.LAB_SAMPLES
    assert sorted([*lab, *rest]) == list(range(1797))


def test_the_committed_calibration_set_is_of_the_lab_part() -> None:
    x = digits.load()[0][digits.lab_split()[0]].transpose(0, 3, 1, 2)
    calibration = np.load(CALIBRATION)["x"]
    assert all((x == sample).all(axis=(1, 2, 3)).any() for sample in calibration)


def test_every_digit_that_is_not_the_labs_goes_to_exactly_one_device() -> None:
    x, y = digits.load()
    rest = digits.lab_split()[1]
    dealt = digits.deal(NAMES, seed=5, drifted=False)
    received = sorted(image.tobytes() for device in dealt for image in device.x)
    assert received == sorted(image.tobytes() for image in x[rest])
    labels = np.concatenate([device.y for device in dealt])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(y[rest]))


def test_images_keep_their_labels() -> None:
    x, y = digits.load()
    label_of = {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    for device in digits.deal(NAMES, seed=5, drifted=False):
        assert [label_of[image.tobytes()] for image in device.x] == device.y.tolist()


def test_the_same_seed_deals_the_same_and_another_seed_differently() -> None:
    first, again, other = (digits.deal(NAMES, seed) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert one.device == two.device
        assert one.drift == two.drift
        np.testing.assert_array_equal(one.x, two.x)
        np.testing.assert_array_equal(one.y, two.y)
    assert first[0].drift != other[0].drift
    assert [len(device.y) for device in first] != [len(device.y) for device in other]


def test_every_third_sample_is_held_out_and_every_device_has_some_of_both() -> None:
    for device in digits.deal(NAMES, seed=1):
        assert np.flatnonzero(device.held_out).tolist() == list(range(2, len(device.y), 3))
        assert device.held_out.sum() >= 4


def test_devices_see_different_mixtures_of_labels() -> None:
    shares = [
        np.bincount(device.y, minlength=10) / len(device.y) for device in digits.deal(NAMES, 1)
    ]
    assert np.mean([share.max() for share in shares]) > 0.2  # even shares would give about 0.1
    even = [
        np.bincount(device.y, minlength=10) / len(device.y)
        for device in digits.deal(NAMES, 1, concentration=1000.0)
    ]
    assert np.mean([share.max() for share in even]) < 0.16


def test_drifted_pixels_stay_within_the_range_of_the_sensor() -> None:
    for device in digits.deal(NAMES, seed=2):
        assert device.x.dtype == np.float32
        assert device.x.shape[1:] == (8, 8, 1)
        assert device.x.min() >= 0.0
        assert device.x.max() <= 1.0


def test_no_drift_leaves_images_alone_and_each_parameter_changes_them() -> None:
    x = digits.load()[0][:4]
    np.testing.assert_allclose(digits.NO_DRIFT.apply(x), x, atol=1e-6)
    for change in (
        {"rotation_degrees": 30.0}, {"stroke": 0.4}, {"stroke": -0.4}, {"gain": 0.5},
        {"offset": 0.1},
    ):  # fmt: skip
        drift = digits.Drift(**{**digits.NO_DRIFT.__dict__, **change})
        assert np.abs(drift.apply(x) - x).mean() > 0.01


def test_strokes_get_thicker_and_thinner() -> None:
    x = digits.load()[0][:20]
    thick, thin = (digits.Drift(0.0, stroke, 1.0, 0.0).apply(x) for stroke in (0.4, -0.4))
    assert thin.mean() < x.mean() < thick.mean()


@pytest.mark.parametrize("count", [0, 1000])
def test_too_few_or_too_many_devices_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="devices"):
        digits.deal([f"d{number}" for number in range(count)], seed=0)


def test_many_devices_get_at_least_twelve_samples_each() -> None:
    dealt = digits.deal([f"d{number}" for number in range(90)], seed=0)
    assert min(len(device.y) for device in dealt) >= 12
