"""Chance: the same for the same purpose and device, even where shares are dealt."""

from __future__ import annotations

from itertools import islice, takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from simulator.world.draws import arrivals, generator, place
from tests.conftest import examples

SEEDS = st.integers(0, 2**32 - 1)


def test_seed_purpose_and_numbers_each_make_other_draws() -> None:
    keys = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a", 1, 0), (0, "a", 11)]
    draws = [generator(*key).random() for key in keys]  # type: ignore[arg-type]
    assert len(set(draws)) == len(keys)
    assert draws == [generator(*key).random() for key in keys]  # type: ignore[arg-type]


def test_pcg64_gives_what_it_always_gave() -> None:
    bits = generator(7, "frozen", 3).bit_generator.random_raw(2)
    assert bits.tolist() == [8261333967320899946, 14751080647556939111]


@examples(30)
@given(SEEDS, st.integers(0, 50))
def test_of_ten_devices_in_a_row_each_lies_in_another_tenth(seed: int, block: int) -> None:
    places = [place(seed, "any", device) for device in range(10 * block, 10 * block + 10)]
    assert sorted(int(10 * one) for one in places) == list(range(10))


def test_a_device_lies_anywhere_and_two_purposes_have_nothing_in_common() -> None:
    places = np.array([[place(seed, which, 4) for which in "ab"] for seed in range(1000)])
    assert stats.kstest(places[:, 0], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.1


@pytest.mark.parametrize("per_second", [1e-7, 1 / 7200, 0.01])
def test_arrivals_are_a_poisson_process(per_second: float) -> None:
    found = arrivals(3, "any", 5, per_second=per_second, since=0.0)
    instants = np.array([at for at, _ in islice(found, 2000)])
    gaps = np.diff(instants, prepend=0.0)
    assert (gaps > 0).all()
    assert stats.kstest(gaps * per_second, "expon").pvalue > 0.01


@examples(30)
@given(SEEDS, st.floats(0, 1e6))
def test_arrivals_after_an_instant_are_those_that_one_who_began_earlier_sees(
    seed: int, since: float
) -> None:
    late = islice(arrivals(seed, "any", 0, per_second=1e-4, since=since), 3)
    early = arrivals(seed, "any", 0, per_second=1e-4, since=0.0)
    told = [(at, random.random()) for at, random in late]
    seen = takewhile(lambda one: one[0] <= told[-1][0], early)
    assert told == [(at, random.random()) for at, random in seen if at >= since]


def test_nothing_arrives_at_a_rate_of_nothing() -> None:
    assert list(arrivals(0, "any", 0, per_second=0.0, since=0.0)) == []
