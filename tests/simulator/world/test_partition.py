"""Who has which samples: all of them, once, in mixtures and numbers as asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from simulator.errors import WorldError
from simulator.world.partition import Partition, Pool, check_enough
from tests.conftest import examples

KINDS: TypeAdapter[Any] = TypeAdapter(Partition)
SIZES = [{"kind": "alike"}, {"kind": "log-normal", "sigma": 1.5}, {"kind": "zipf", "exponent": 1.2}]
PARTITIONS = [
    *({"kind": "iid", "sizes": sizes} for sizes in SIZES),
    *(
        {"kind": "label-skew", "concentration": concentration, "sizes": sizes}
        for sizes in SIZES
        for concentration in (0.01, 1.0, 1e6)
    ),
    {"kind": "by-subject"},
]


def pool(samples: int, classes: int = 5, subjects: int = 7, seed: int = 0) -> Pool:
    random = np.random.default_rng(seed)
    return Pool(
        random.integers(0, classes, samples).astype(np.int64),
        random.integers(0, subjects, samples).astype(np.int64),
    )


def mixtures(dealt: list[NDArray[np.intp]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.array([np.bincount(labels[share], minlength=labels.max() + 1) for share in dealt])
    return counts / counts.sum(axis=1, keepdims=True)


@examples(60)
@given(
    st.sampled_from(PARTITIONS),
    st.integers(1, 40),
    st.integers(120, 400),
    st.integers(0, 2**32 - 1),
)
def test_every_sample_goes_to_exactly_one_device_and_each_has_enough(
    described: dict[str, Any], devices: int, samples: int, seed: int
) -> None:
    partition, shared = KINDS.validate_python(described), pool(samples, seed=seed)
    dealt = partition.deal(shared, seed, "test", devices)
    least = 3 if described["kind"] != "by-subject" else min(map(len, dealt))
    filled = partition.filled(dealt, least, seed, "test")
    assert len(filled) == devices
    assert sorted(np.concatenate(filled).tolist()) == list(range(samples))
    assert min(map(len, filled)) >= least
    enough = [number for number, share in enumerate(dealt) if len(share) == least]
    assert all(np.array_equal(filled[number], dealt[number]) for number in enough)


@pytest.mark.parametrize("kind", ["iid", "label-skew"])
def test_devices_have_the_sizes_that_were_asked_for(kind: str) -> None:
    shared = pool(20_000)
    fields = {"concentration": 2.0} if kind == "label-skew" else {}
    for sizes, spread in zip(SIZES, [(0.9, 1.1), (3.0, 6.0), (10.0, 80.0)], strict=True):
        partition = KINDS.validate_python({"kind": kind, "sizes": sizes, **fields})
        counts = np.array([len(one) for one in partition.deal(shared, 4, "test", 100)])
        high, low = np.quantile(counts, [0.9, 0.1])
        ratio = counts.max() / np.median(counts) if sizes["kind"] == "zipf" else high / low
        if sizes["kind"] == "log-normal":
            # Between the 10th and the 90th percentile lie 2.56 standard deviations.
            assert np.log(ratio) == pytest.approx(2.56 * 1.5, rel=0.25)
        elif sizes["kind"] == "zipf":
            # The first of a hundred has 50^1.2 times what the middle one has, or more or less.
            assert 0.4 * 50**1.2 < ratio < 10 * 50**1.2
        else:
            assert spread[0] < ratio < spread[1]


def test_a_large_concentration_is_iid_and_a_small_one_is_a_label_each() -> None:
    shared = pool(8000)
    means = {}
    for concentration in (0.01, 1.0, 1e6):
        partition = KINDS.validate_python({"kind": "label-skew", "concentration": concentration})
        means[concentration] = mixtures(partition.deal(shared, 2, "t", 40), shared.labels).max(1)
    assert means[0.01].mean() > 0.85
    assert 0.4 < means[1.0].mean() < 0.85
    assert means[1e6].max() < 0.25  # of five labels, which are about as frequent
    random = KINDS.validate_python({"kind": "iid"}).deal(shared, 2, "t", 40)
    assert mixtures(random, shared.labels).max() < 0.35


def test_mixtures_have_the_variance_of_a_dirichlet_distribution() -> None:
    shared = pool(5000)
    partition = KINDS.validate_python({"kind": "label-skew", "concentration": 3.0})
    drawn = np.array([partition.mixture(shared, 1, "test", device) for device in range(2000)])
    share = np.bincount(shared.labels) / len(shared.labels)
    np.testing.assert_allclose(drawn.mean(0), share, atol=0.02)
    # Var = p (1 - p) / (concentration + 1).
    np.testing.assert_allclose(drawn.var(0), share * (1 - share) / 4.0, rtol=0.12)


def test_what_a_device_draws_by_itself_is_the_mixture_that_it_would_be_dealt() -> None:
    shared = pool(5000)
    partition = KINDS.validate_python({"kind": "label-skew", "concentration": 3.0})
    own = partition.draw(shared, 1, "test", 17, 2000)
    got = np.bincount(shared.labels[own], minlength=5) / 2000
    np.testing.assert_allclose(got, partition.mixture(shared, 1, "test", 17), atol=0.05)


@pytest.mark.parametrize("described", PARTITIONS, ids=str)
def test_a_device_by_itself_has_no_sample_twice_while_there_are_enough(
    described: dict[str, Any],
) -> None:
    partition, shared = KINDS.validate_python(described), pool(900)
    own = partition.draw(shared, 1, "test", 3, 20)
    assert len(own) == len(set(own.tolist())) == 20
    assert len(partition.draw(shared, 1, "test", 3, 2000)) == 2000


@pytest.mark.parametrize("devices", [3, 7, 20])
def test_a_device_sees_one_subject_or_some_of_their_own(devices: int) -> None:
    shared = pool(700)
    assert shared.subjects is not None
    dealt = KINDS.validate_python({"kind": "by-subject"}).deal(shared, 5, "test", devices)
    seen = [set(shared.subjects[share].tolist()) for share in dealt]
    if devices >= 7:
        assert all(len(one) == 1 for one in seen)
        assert set.union(*seen) == set(range(7))
    else:
        assert sum(map(len, seen)) == 7
        assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_by_subject_needs_subjects() -> None:
    nobodys = Pool(pool(100).labels)
    with pytest.raises(WorldError, match=r"data\.partition: .* use another kind than by-subject"):
        KINDS.validate_python({"kind": "by-subject"}).deal(nobodys, 0, "test", 4)


def test_nobody_gets_another_ones_samples_to_have_enough() -> None:
    partition, shared = KINDS.validate_python({"kind": "by-subject"}), pool(120)
    dealt = partition.deal(shared, 0, "test", 40)
    with pytest.raises(WorldError, match=r"device \d+ has [12] samples of its subject, 3 are"):
        partition.filled(dealt, 3, 0, "test")


def test_too_many_devices_for_the_samples_are_refused_with_what_to_do() -> None:
    check_enough(120, 40, 3)
    with pytest.raises(WorldError, match=r"41 devices with 3 each .* 40 devices are the most, or"):
        check_enough(120, 41, 3)
