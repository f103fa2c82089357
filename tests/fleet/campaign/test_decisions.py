"""Names of decisions, made and read."""

from __future__ import annotations

import pytest

from fleet.campaign.decisions import Decision


@pytest.mark.parametrize(
    ("decision", "name"),
    [
        (Decision("begin", 0), "begin:0"),
        (Decision("gate", 12), "gate:12"),
        (Decision("gate", 1, "soak"), "gate:1:soak"),
        (Decision("gate", 1, "training"), "gate:1:training"),
    ],
)
def test_a_decision_is_read_as_it_was_named(decision: Decision, name: str) -> None:
    assert decision.name == name
    assert Decision.parse(name) == decision


@pytest.mark.parametrize(
    "name", ["", "begin", "begin:", "begin:all", "begin:²", "begin:0:soak", "gate:-1", "gate:1:x"]
)
def test_what_is_no_decision_is_read_as_none(name: str) -> None:
    assert Decision.parse(name) is None
