"""How figures are written on pages."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.dashboard.formats import energy, size
from tests.conftest import examples

UNITS = ("B", "kB", "MB", "GB", "TB")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 B"),
        (999, "999 B"),
        (999.9, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (1_234_567, "1.23 MB"),
        (-4_200, "-4.2 kB"),
        (999.6e9, "1.0 TB"),
        (2.5e15, "2,500.0 TB"),
    ],
)
def test_bytes_are_told_in_the_unit_that_fits(count: float | None, text: str) -> None:
    assert size(count) == text


def test_energy_is_told_in_the_unit_that_fits() -> None:
    assert [energy(one) for one in (999.9, 12_345, 7.2e6)] == ["1 J", "12.3 J", "7.2 kJ"]


@examples(200)
@given(st.floats(1, 1e18))
def test_a_size_is_what_it_is_told_to_be(count: float) -> None:
    found = re.fullmatch(r"([0-9,.]+) (\w+)", size(count))
    assert found is not None
    number, unit = float(found[1].replace(",", "")), UNITS.index(found[2])
    assert number * 1000**unit == pytest.approx(count, rel=0.05)
    assert number < 1000 or found[2] == UNITS[-1]
