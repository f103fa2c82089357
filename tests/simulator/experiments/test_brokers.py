"""The broker of a site in virtual time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from simulator.experiments.brokers import seconds_of
from tests.conftest import examples


@given(st.floats(0.0, 1e12))
@examples(200)
def test_what_is_due_at_a_millisecond_is_due_when_it_is_woken(milliseconds: float) -> None:
    # Woken too early it would find nothing due, and be woken at the same moment for ever.
    woken = seconds_of(milliseconds)
    assert woken * 1000.0 >= milliseconds
    assert math.nextafter(woken, -math.inf) * 1000.0 <= milliseconds


def test_what_is_never_due_stays_so() -> None:
    assert seconds_of(math.inf) == math.inf
