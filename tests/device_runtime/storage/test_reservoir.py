"""A sample log that keeps a fair choice of all samples that it has ever seen."""

import ctypes
import math

import numpy as np
import pytest

from .conftest import FLASH_FAILED, OK, Flash
from .test_sample_log import PER_UNIT, RESERVOIR, Log, sample

SIZE = 900


def fill(log: Log, seen: int) -> list[int]:
    """Adds so many samples and returns the number, in order of arrival, of those that stayed."""
    for number in range(seen):
        assert log.append(number.to_bytes(4, "little") + bytes(SIZE - 4), number % 10) == OK
    return [int.from_bytes(record.data()[:4], "little") for record in log.records()]


@pytest.mark.parametrize(("units", "seen"), [(2, 60), (2, 200), (4, 60), (4, 300)])
def test_every_sample_ever_seen_stays_with_the_same_probability(
    library: ctypes.CDLL, units: int, seen: int
) -> None:
    runs = 500
    stayed = np.zeros((runs, seen))
    flash = Flash()
    for seed in range(runs):
        library.emulated_flash_start(ctypes.byref(flash), 1)
        stayed[seed, fill(Log(library, flash, units, units, RESERVOIR, seed=seed), seen)] = 1
    expected = stayed.mean()
    assert (units - 1) * PER_UNIT / seen <= expected <= units * PER_UNIT / seen
    # Early, middle and late ones alike. A unit's samples go together, so runs are what is counted.
    for parts in (2, 5, 20):
        shares = stayed.reshape(runs, parts, -1).mean(axis=2)
        error = shares.std(axis=0) / math.sqrt(runs)
        assert (np.abs(shares.mean(axis=0) - expected) < 4 * error).all()
        assert error.max() < 0.2 * expected, "too few runs to tell"
    # No single one is an outlier either.
    sigma = math.sqrt(expected * (1 - expected) / runs)
    assert np.abs(stayed.mean(axis=0) - expected).max() < 4.5 * sigma


def test_until_the_log_is_full_everything_is_stored(library: ctypes.CDLL, flash: Flash) -> None:
    log = Log(library, flash, keep=RESERVOIR)
    for label in range(4 * PER_UNIT):
        assert log.append(sample(label), label) == OK
    assert log.labels() == list(range(4 * PER_UNIT))


def test_every_third_of_those_that_are_stored_is_held_out(
    library: ctypes.CDLL, flash: Flash
) -> None:
    log = Log(library, flash, keep=RESERVOIR)
    shares = []
    for number in range(600):
        assert log.append(sample(number % 50), number % 10) == OK
        records = log.records()
        if len(records) >= 3 * PER_UNIT:
            shares.append(sum(record.held_out for record in records) / len(records))
    assert 0.2 < min(shares) <= max(shares) < 0.45


def test_what_is_drawn_follows_from_the_seed(library: ctypes.CDLL) -> None:
    def kept(seed: int) -> list[int]:
        flash = Flash()
        library.emulated_flash_start(ctypes.byref(flash), 1)
        return fill(Log(library, flash, keep=RESERVOIR, seed=seed), 500)

    assert kept(5) == kept(5)
    assert kept(5) != kept(6)


def test_seeing_twice_as_many_samples_erases_less_than_every_unit_once(
    library: ctypes.CDLL, flash: Flash
) -> None:
    log = Log(library, flash, keep=RESERVOIR)
    begun = []
    for doubling in range(5, 14):
        fill(log, 2 ** (doubling - 1))
        begun.append(log.log.sequence)
    assert max(np.diff(begun)[2:]) <= 5  # 4 units, ln 2 of them on average
    assert log.flash.operations < 60_000


def test_a_log_that_was_reset_goes_on_with_the_rate_that_it_had(
    library: ctypes.CDLL, flash: Flash
) -> None:
    log = Log(library, flash, keep=RESERVOIR)
    fill(log, 500)
    rate, sequence = log.log.rate, log.log.sequence
    assert rate < 2**31
    log.boot()
    assert (log.log.rate, log.log.sequence) == (rate, sequence)
    expected = 2.0**32
    for _ in range(sequence - 4):
        expected *= 3 / 4
    assert rate == pytest.approx(expected, rel=1e-6)


def test_a_power_cut_while_a_unit_goes_costs_that_unit_and_no_other(
    library: ctypes.CDLL, flash: Flash
) -> None:
    log = Log(library, flash, keep=RESERVOIR)
    fill(log, 4 * PER_UNIT)
    full = log.content
    outcomes = set()
    for seed in range(200):
        cut = (1, 2, 2, 2, 4, 10)[seed % 6]  # retired, erased, the header, the record
        log.content, log.seed = full, seed
        log.boot()
        log.flash.random = seed
        log.flash.power_on(operations_to_cut=cut)
        assert log.append(sample(99), 9) in (OK, FLASH_FAILED)
        for again in range(3):
            log.seed = seed + 1000 + again  # other draws after each reset
            log.boot()
            assert log.append(sample(98), 8) == OK
        stayed = {int.from_bytes(record.data()[:4], "little") for record in log.records()}
        units_lost = {
            unit
            for unit in range(4)
            if not set(range(unit * PER_UNIT, (unit + 1) * PER_UNIT)) <= stayed
        }
        assert len(units_lost) <= 1
        outcomes |= units_lost
    assert outcomes == {0, 1, 2, 3}
