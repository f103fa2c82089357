"""What devices have recorded: parts that don't mix, times, and sensors that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.errors import WorldError
from simulator.world import digits
from simulator.world.data import FleetData, SensorLog
from tests.simulator.world.worlds import world

PEOPLE = 12


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with samples of twelve people in own.npz; each value is the sample's position."""
    folder = tmp_path_factory.mktemp("people")
    count = PEOPLE * 20
    x = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    random = np.random.default_rng(0)
    subject = np.array([f"person {n % PEOPLE}" for n in range(count)])
    np.savez(folder / "own.npz", x=x, y=random.integers(0, 4, count), subject=subject)
    return folder


def of_people(folder: Path, devices: int = 6, seed: int = 1, **fields: Any) -> FleetData:
    data = {"dataset": {"name": "npz", "path": "own.npz"}, **fields}
    return world(devices, seed, folder, data=data).data


def logs(data: FleetData) -> list[SensorLog]:
    return [data.log(number) for number in range(data.devices)]


def test_lab_fleet_and_held_out_share_no_sample_and_leave_none_out(people: Path) -> None:
    data = of_people(people, lab_share=0.25, held_out_share=1 / 3)
    held_out = [data.held_out_log(number) for number in range(data.held_out_devices)]
    parts = [
        data.lab.x[:, 0, 0, 0],
        *(one.x[:, 0, 0, 0] for one in logs(data)),
        *(one.x[:, 0, 0, 0] for one in held_out),
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(PEOPLE * 20))


def test_whole_subjects_are_the_labs_or_held_out(people: Path) -> None:
    data = of_people(people, lab_share=0.25, held_out_share=1 / 3, partition={"kind": "by-subject"})
    assert data.lab.subjects is not None
    lab = set(data.lab.subjects.tolist())
    fleet = [set((one.positions % PEOPLE).tolist()) for one in logs(data)]
    held = [
        set((data.held_out_log(n).positions % PEOPLE).tolist())
        for n in range(data.held_out_devices)
    ]
    # Three of twelve, a third of the other nine, and one device for each of those.
    assert (len(lab), data.held_out_devices) == (3, 3)
    assert all(len(one) == 1 for one in [*fleet, *held])
    names = sorted(f"person {n}" for n in range(PEOPLE))
    own = {int(name.split()[1]) for name in (names[number] for number in lab)}
    assert (
        not own & set.union(*fleet) | own & set.union(*held) | set.union(*fleet) & set.union(*held)
    )


def test_the_seed_of_an_experiment_has_no_part_in_what_the_lab_has(people: Path) -> None:
    fields = {"lab_share": 0.25, "held_out_share": 0.25}
    one, other = (of_people(people, seed=seed, **fields) for seed in (1, 2))
    np.testing.assert_array_equal(one.lab.x, other.lab.x)
    assert not np.array_equal(one.log(0).positions, other.log(0).positions)
    split = of_people(people, split_seed=9, **fields)
    assert not np.array_equal(one.lab.x, split.lab.x)


def test_the_digits_of_the_demos_lab_are_no_devices() -> None:
    data = world(20).data
    x = digits.load()[0]
    np.testing.assert_array_equal(data.lab.x, x[digits.lab_split()[0]])
    rest = sorted(digits.lab_split()[1].tolist())
    assert sorted(np.concatenate([one.positions for one in logs(data)]).tolist()) == rest
    assert len(data.fleet_pool) == len(rest)
    assert (data.classes, data.sample_shape) == (10, (8, 8, 1))


def test_samples_keep_their_labels(people: Path) -> None:
    with np.load(people / "own.npz") as file:
        y = file["y"]
    for one in logs(of_people(people)):
        np.testing.assert_array_equal(one.y, y[one.positions])
        np.testing.assert_array_equal(one.x[:, 0, 0, 0], one.positions)


def test_recorded_order_is_the_data_sets(people: Path) -> None:
    for one in logs(of_people(people, order="recorded")):
        assert (np.diff(one.positions) > 0).all()
    assert any((np.diff(one.positions) < 0).any() for one in logs(of_people(people)))


def test_samples_come_within_the_time_that_was_asked_for(people: Path) -> None:
    one = of_people(people, recorded_over_hours=10).log(0)
    assert (np.diff(one.seconds) >= 0).all()
    assert 0 <= one.seconds[0] < one.seconds[-1] <= 36_000
    early = one.until(18_000)
    assert 0 < len(early) < len(one)
    assert (early.seconds <= 18_000).all()
    assert (one.seconds[len(early) :] > 18_000).all()
    at_once = of_people(people).log(0)
    assert not at_once.seconds.any()
    assert len(at_once.until(0.0)) == len(at_once)


def test_a_sensor_drifts_by_the_time_of_each_sample() -> None:
    fields = {
        "recorded_over_hours": 48,
        "sensor": {"kind": "image", "gain": {"at": 1, "per_day": -0.4}},
    }
    one = world(20, data=fields).data.log(3)
    x = digits.load()[0][one.positions]
    gains = (1 - 0.4 * one.seconds / 86_400).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(one.x, gains * x, atol=1e-6)


def test_codes_go_through_a_sensor_and_stay_codes(tmp_path: Path) -> None:
    codes = np.arange(-128, 128, dtype=np.int8).reshape(-1, 1, 1, 1)
    np.savez(tmp_path / "own.npz", x=codes, y=np.zeros(256, np.int64))
    plain = of_people(tmp_path, devices=1, order="recorded").log(0)
    np.testing.assert_array_equal(plain.x, codes)
    seen = of_people(
        tmp_path, devices=1, order="recorded", sensor={"kind": "image", "gain": 0.5}
    ).log(0)
    assert seen.x.dtype == np.int8
    expected = np.rint(-128 + 0.5 * (codes.astype(np.float64) + 128))
    assert np.abs(seen.x - expected).max() <= 1
    still = of_people(tmp_path, devices=1, order="recorded", sensor={"kind": "image"}).log(0)
    np.testing.assert_array_equal(still.x, codes)


def test_a_stuck_sensor_gives_its_last_sample_again(people: Path) -> None:
    fields = {"recorded_over_hours": 10, "stuck": {"share": 0.5, "after_hours": 5}}
    stuck = 0
    for one, free in zip(
        logs(of_people(people, **fields)),
        logs(of_people(people, recorded_over_hours=10)),
        strict=True,
    ):
        late = one.seconds >= 5 * 3600
        np.testing.assert_array_equal(one.y, free.y)
        np.testing.assert_array_equal(one.x[~late], free.x[~late])
        if not np.array_equal(one.x, free.x):
            stuck += 1
            assert (one.x[late] == one.x[~late][-1]).all()
    assert 1 <= stuck <= 5


def test_a_sensor_that_was_always_stuck_has_seen_one_sample(people: Path) -> None:
    one = of_people(people, stuck={"share": 1.0}).log(0)
    assert (one.x == one.x[0]).all()


def test_shuffled_labels_are_right_in_number_only(people: Path) -> None:
    true = logs(of_people(people, devices=10))
    shuffled = logs(of_people(people, devices=10, shuffled_labels=0.3))
    differ = [n for n in range(10) if not np.array_equal(true[n].y, shuffled[n].y)]
    assert len(differ) == 3
    for one, other in zip(true, shuffled, strict=True):
        np.testing.assert_array_equal(np.sort(one.y), np.sort(other.y))
        np.testing.assert_array_equal(one.x, other.x)


@pytest.mark.parametrize(
    ("fields", "devices", "said"),
    [
        ({}, 100, r"240 samples can't be dealt to 100 devices with 3 each .* 80 devices"),
        ({"held_out_devices": 3}, 6, r"data\.held_out_devices: nothing is held out"),
        ({"lab_share": 0.99}, 6, "nothing is left for devices"),
        ({"held_out_share": 0.01, "held_out_devices": 90}, 6, "20 samples .* 90 devices with 1"),
        ({"partition": {"kind": "by-subject"}, "min_samples": 15}, 16, "of its subject, 15 are"),
        ({"sensor": {"kind": "series", "turned_degrees": 9}, "dataset": "digits"}, 6, "1 channels"),
        ({"dataset": "digits", "partition": {"kind": "by-subject"}}, 6, "doesn't say whose"),
    ],
    ids=str,
)
def test_data_that_cannot_be_dealt_are_refused_with_what_to_do(
    people: Path, fields: dict[str, Any], devices: int, said: str
) -> None:
    with pytest.raises(WorldError, match=said):
        of_people(people, devices, **fields).log(0)


def test_a_lab_without_samples_says_so(people: Path) -> None:
    with pytest.raises(WorldError, match=r"data\.lab_share"):
        _ = of_people(people).lab
