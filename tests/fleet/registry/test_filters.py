"""Filters of devices: what they say, what they refuse, and that all ways to ask agree."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.errors import RegistryError
from fleet.registry import Filter

COW: dict[str, Any] = {
    "device": "cow-7",
    "site": "barn",
    "labels": {"room": "north", "fur coat": "red"},
    "retired": False,
    "online": True,
    "board": "stm32f746",
    "battery_percent": 40,
    "seen_age_seconds": 12.5,
}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("true", True),
        ("false", False),
        ("online", True),
        ("!online", False),
        ("online && !retired", True),
        ('board == "stm32f746"', True),
        ("board == 'stm32f746'", True),
        ('"stm32f746" == board', True),
        ('board != "stm32f746"', False),
        ("battery_percent >= 40", True),
        ("40 < battery_percent", False),
        ("battery_percent > -5", True),
        ("battery_percent == 40.0", True),
        ("battery_percent in [20, 40]", True),
        ("battery_percent in [20]", False),
        ("battery_percent in []", False),
        ("seen_age_seconds < 60", True),
        ('device.startsWith("cow-")', True),
        ('device.startsWith("COW-")', False),
        ('device.endsWith("-7")', True),
        ('device.endsWith("a longer text than it")', False),
        ('device.contains("w-")', True),
        ('device.contains("")', True),
        ('device.contains("%")', False),
        ('labels.room == "north"', True),
        ('labels["room"] == "north"', True),
        ('labels["fur coat"] in ["red", "brown"]', True),
        ('"room" in labels', True),
        ("has(labels.room)", True),
        ("has(labels.age)", False),
        ("!has(labels.age)", True),
        ("(online || retired) && site == 'barn'", True),
        ("online || retired && false", True),
        # What nobody knows is neither true nor false.
        ('labels.age == "old"', False),
        ('labels.age != "old"', False),
        ('!(labels.age == "old")', False),
        ('labels.age == "old" || online', True),
        ('!(labels.age == "old" && false)', True),
        ('labels.age in ["old"] || labels.age == "old"', False),
        ("train_samples > 0", False),
        ("train_samples == null", True),
        ("battery_percent != null", True),
        ("battery_percent == null", False),
    ],
)
def test_a_filter_matches_what_it_says(text: str, matches: bool) -> None:
    found = Filter.parse(text)
    assert found.matches(COW) is matches
    again = Filter.parse(str(found.condition))
    assert again.condition == found.condition, "what it prints is the same filter"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bord == 'x'", "bord is no field of a device; there are device, site"),
        ("board = 'x'", "no CEL at line 1, column 7"),
        ("board == 7", "board is a text, 7 is a number"),
        ("battery_percent == 'x'", "battery_percent is a number, 'x' is a text"),
        ("online == 1", "online is a truth, 1 is a number"),
        ("board", "board is no condition"),
        ("board < 'x'", "isn't offered for text"),
        ("board == site", "compared with constants only"),
        ("1 == 1", "isn't offered"),
        ("battery_percent + 1 > 2", "isn't offered"),
        ("-battery_percent > 2", "isn't offered"),
        ("board.matches('x.*')", r"\.matches\(\) isn't offered; there are startsWith"),
        ("battery_percent.startsWith('x')", "is for text"),
        ("board.startsWith(7)", "isn't text"),
        ("size(labels) > 1", r"size\(\) isn't offered"),
        ("online ? retired : online", "isn't offered"),
        ("labels == 'x'", "compared one by one"),
        ("labels[site] == 'x'", "isn't offered"),
        ("'room' in site", "isn't offered"),
        ("board in site", "wants a list"),
        ("battery_percent < null", "null makes no sense"),
        ("has(1)", "isn't offered"),
        ("[1].exists(x, x == 1)", "isn't offered"),
        ("{}", "isn't offered"),
        ("timestamp('2020-01-01T00:00:00Z')", "isn't offered"),
        ("x" * 3000, "at most 2000 are read"),
        ("!" * 300 + "online", "nested"),
        ("(" * 300 + "online" + ")" * 300, ""),
        ("\x00", "no CEL"),
    ],
)
def test_what_a_database_can_not_do_is_refused_by_name(text: str, why: str) -> None:
    if not why:
        assert Filter.parse(text).matches(COW)
        return
    with pytest.raises(RegistryError, match=why):
        Filter.parse(text)


def test_the_parts_of_a_filter_are_what_has_to_be_true_at_once() -> None:
    found = Filter.parse("online && (retired || battery_percent > 20) && has(labels.room)")
    assert [str(part) for part in found.parts()] == [
        "online == true",
        "retired == true || battery_percent > 20",
        '"room" in labels',
    ]
