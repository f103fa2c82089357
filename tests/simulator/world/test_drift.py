"""Sensors that differ from the lab's, and differ more with time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from simulator.world.drift import Drift, Sensor
from simulator.world.fields import DAY_SECONDS

SENSORS: TypeAdapter[Any] = TypeAdapter(Sensor)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((6, 8, 8, 2)).astype(np.float32)
SERIES = (0.5 + 0.2 * RANDOM.normal(size=(6, 32, 1, 6))).clip(0, 1).astype(np.float32)


def seen(
    x: np.ndarray[Any, np.dtype[np.float32]], days: float = 0.0, device: int = 3, **fields: Any
) -> np.ndarray[Any, np.dtype[np.float32]]:
    kind = "image" if x is IMAGES else "series"
    seconds = np.full(len(x), days * DAY_SECONDS)
    sensor = SENSORS.validate_python({"kind": kind, **fields})
    return sensor.seen(x, seconds, 1, device)  # type: ignore[no-any-return]


@pytest.mark.parametrize("x", [IMAGES, SERIES], ids=["images", "series"])
def test_a_sensor_as_the_labs_sees_what_the_lab_sees(x: Any) -> None:
    np.testing.assert_allclose(seen(x), x, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "fields"),
    [
        *((IMAGES, one) for one in ({"rotation_degrees": 30}, {"stroke": 0.4}, {"stroke": -0.4})),
        *((x, one) for x in (IMAGES, SERIES) for one in ({"gain": 0.5}, {"offset": 0.1})),
        (SERIES, {"noise": 0.05}),
        (SERIES, {"turned_degrees": 45}),
    ],
    ids=str,
)
def test_each_parameter_changes_what_is_seen_within_the_range(x: Any, fields: Any) -> None:
    changed = seen(x, **fields)
    assert (changed.shape, changed.dtype) == (x.shape, np.float32)
    assert np.abs(changed - x).mean() > 0.01
    assert changed.min() >= 0.0
    assert changed.max() <= 1.0


def test_channels_of_an_image_are_seen_alike() -> None:
    both = Drift(20.0, 0.3, 0.8, 0.1).apply(IMAGES)
    alone = Drift(20.0, 0.3, 0.8, 0.1).apply(IMAGES[..., 1:])
    np.testing.assert_array_equal(both[..., 1:], alone)


def test_a_sensor_changes_by_so_much_a_day() -> None:
    course = {"gain": {"at": 1.0, "per_day": -0.1}}
    np.testing.assert_allclose(seen(IMAGES, 4.0, **course), 0.6 * IMAGES, atol=1e-6)
    mixed = SENSORS.validate_python({"kind": "image", **course})
    days = np.array([0.0, 1.0, 0.0, 2.0, 1.0, 4.0])
    gains = (1 - 0.1 * days).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        mixed.seen(IMAGES, days * DAY_SECONDS, 1, 3), gains * IMAGES, atol=1e-6
    )


def test_each_device_has_a_sensor_of_its_own_between_the_ends() -> None:
    ones = np.full((1, 4, 4, 1), 0.5, np.float32)
    sensor = SENSORS.validate_python({"kind": "image", "gain": [0.4, 0.8]})
    gains = [float(sensor.seen(ones, np.zeros(1), 1, n).mean()) / 0.5 for n in range(200)]
    assert 0.4 <= min(gains) < 0.42
    assert 0.78 < max(gains) <= 0.8


def test_turning_a_sensor_keeps_lengths_and_turns_both_sensors_alike() -> None:
    small = 0.5 + 0.1 * (SERIES - 0.5)  # so that nothing is cut off
    turned = SENSORS.validate_python({"kind": "series", "turned_degrees": 70}).seen(
        small, np.zeros(len(small)), 1, 3
    )
    before, after = ((one - 0.5).reshape(-1, 2, 3) for one in (small, turned))
    np.testing.assert_allclose(
        np.linalg.norm(after, axis=2), np.linalg.norm(before, axis=2), atol=1e-6
    )
    # One rotation explains all: the matrix found by least squares is orthogonal.
    matrix = np.linalg.lstsq(before.reshape(-1, 3), after.reshape(-1, 3), rcond=None)[0]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-4)
    assert np.degrees(np.arccos((np.trace(matrix) - 1) / 2)) == pytest.approx(70, abs=0.1)


def test_noise_is_as_strong_as_was_asked_for() -> None:
    middle = np.full((50, 100, 1, 1), 0.5, np.float32)
    sensor = SENSORS.validate_python({"kind": "series", "noise": 0.05})
    assert sensor.seen(middle, np.zeros(50), 1, 3).std() == pytest.approx(0.05, rel=0.05)


def test_only_three_axes_can_be_turned() -> None:
    sensor = SENSORS.validate_python({"kind": "series", "turned_degrees": 10})
    with pytest.raises(ValueError, match=r"sensor\.turned_degrees: 4 channels"):
        sensor.seen(SERIES[..., :4], np.zeros(6), 1, 3)
