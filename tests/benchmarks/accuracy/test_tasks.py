"""The tasks' networks and plans, on the data that lies beside the repository."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="accuracy studies need PyTorch: pip install torch")

from benchmarks.accuracy.frozen import trained_tail
from benchmarks.accuracy.samples import enlarged, shared_folder
from benchmarks.accuracy.small_networks import halves, turned
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.training import Schedule, train_on_device_arithmetic
from codegen.program.plans import resolve


@pytest.fixture
def _shared() -> None:
    try:
        shared_folder()
    except SystemExit as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.usefixtures("_shared")
def test_mcunet_after_the_cut_trains_to_the_bits_of_the_whole() -> None:
    task = TASKS["flowers96"]
    graph, cases = task.prepare(0)
    few = replace(
        cases["photos"],
        **{name: getattr(cases["photos"], name)[:4] for name in ("train", "test")},
        **{name: getattr(cases["photos"], name)[:4] for name in ("train_labels", "test_labels")},
    )
    plan = resolve(task.plans(graph)["49kb"], graph)
    tail, arriving = trained_tail(graph, plan, few)
    assert arriving.train.shape == (4, 8, 8, 160)
    schedule = Schedule(epochs=2)
    whole = train_on_device_arithmetic(graph, plan, few, schedule, 0)
    assert train_on_device_arithmetic(tail, plan, arriving, schedule, 0) == whole


@pytest.mark.usefixtures("_shared")
@pytest.mark.parametrize("name", ["flowers96", "cifar10_sub"])
def test_every_plan_of_mcunet_resolves_and_trains_the_head(name: str) -> None:
    graph, cases = TASKS[name].prepare(1)
    for spec in TASKS[name].plans(graph).values():
        assert resolve(spec, graph).head
    samples = cases["photos"]
    assert samples.train.shape[1:] == graph.tensors[graph.input].shape
    assert set(samples.train_labels) == set(samples.test_labels)


@pytest.mark.usefixtures("_shared")
def test_seeds_draw_other_heads_and_leave_the_rest() -> None:
    (first, _), (again, _), (second, _) = (TASKS["flowers96"].prepare(s) for s in (0, 0, 1))
    assert np.array_equal(first.head.weight, again.head.weight)
    assert not np.array_equal(first.head.weight, second.head.weight)
    ours, theirs = first.convolutions[5], second.convolutions[5]
    assert np.array_equal(ours.weight, theirs.weight)


def test_enlarged_pixels_are_codes_around_zero() -> None:
    images = np.full((1, 32, 32, 3), 200, np.uint8)
    assert enlarged(images).shape == (1, 128, 128, 3)
    assert (enlarged(images) == 72).all()


def test_a_turned_sensor_keeps_the_size_of_what_it_measures() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 6, 16, 1)).astype(np.float32)
    moved = turned(x, random)
    for sensor in (slice(0, 3), slice(3, 6)):
        before, after = (np.linalg.norm(v[:, sensor], axis=1) for v in (x, moved))
        assert np.allclose(before, after, rtol=1e-4)
    assert np.abs(moved - x).max() > 0.5
    angle = np.einsum("nctw,nctw->ntw", x[:, :3], moved[:, :3])
    assert (angle >= 0.7 * np.linalg.norm(x[:, :3], axis=1) ** 2 - 1e-4).all()


def test_halves_are_early_and_late_windows_of_an_activity_without_the_border() -> None:
    recording = np.repeat(np.array([1, 2], np.uint8), 10)
    y = np.tile(np.repeat([0, 1], 5), 2)
    early, late = halves(recording, y)
    assert not set(early) & set(late)
    assert len(early) + len(late) == 20 - 4  # one of each activity and recording lies between
    assert early[:2] == [0, 1]
    assert late[:2] == [3, 4]
