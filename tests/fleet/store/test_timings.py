"""What past campaigns of a model say about how long devices take, over each database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from fleet.campaign import RoundKind
from fleet.clock import VirtualClock
from fleet.registry import NewDevice, Observed
from fleet.store import Registry, SqlStore, Timing, Timings, WeightsVersion
from fleet.store import timings as module
from tests.fleet.coordinator import small_model

PLAN, OTHER = "a" * 64, "b" * 64

ACTIONS = {one.value: one.action for one in RoundKind}


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    one = SqlStore(new_database(request.param), VirtualClock())
    boards = {"d0": "a", "d1": "a", "d2": "a", "d3": "b"}
    registry = Registry(one)
    registry.add([NewDevice(device=name, site="barn") for name in (*boards, "silent")])
    registry.observe({name: seen(name, board) for name, board in boards.items()})
    yield one
    one.close()


def seen(name: str, board: str) -> Observed:
    entry = small_model.device_entry(name, board)
    known = {key: value for key, value in entry.items() if key in Observed.model_fields}
    return Observed.model_validate({**known, "gateway": "g", "last_seen": 1.0})


def campaign(store: SqlStore, number: int, base: str = "m:1") -> str:
    name = f"{number:016x}"
    store.create_campaign(name, "{}", {}, WeightsVersion(0, "0" * 64, b"", b""), "ann", base)
    store.claim(name, "driver")
    return name


def ended(
    store: SqlStore,
    name: str,
    number: int,
    kind: str,
    seconds: Mapping[str, float],
    **values: Any,
) -> None:
    reports = [
        {"device": device, "plan": PLAN, "train_steps": 5, "seconds": one, **values}
        for device, one in seconds.items()
    ]
    store.begin_round(name, "driver", number, kind, {})
    store.finish_round(name, "driver", number, "done", {"accepted": 1}, reports, None)


def test_the_median_is_taken_of_each_plan_board_and_action(store: SqlStore) -> None:
    one = campaign(store, 1)
    ended(store, one, 0, "score-first", {"d0": 3, "d3": 5}, train_steps=0)
    ended(store, one, 1, "train", {"d0": 10, "d1": 30, "d2": 11, "d3": 70})
    ended(store, one, 2, "train", {"d0": 13}, plan=OTHER)
    ended(store, one, 3, "score-last", {"d0": 4}, train_steps=0)
    ended(store, one, 4, "release", {"d0": 2}, train_steps=0)
    assert Timings(store, ACTIONS).of_model("m") == (
        Timing(PLAN, "a", "release", 1, 2),
        Timing(PLAN, "a", "score", 2, 3.5),
        Timing(PLAN, "a", "train", 3, 11),
        Timing(PLAN, "b", "score", 1, 5),
        Timing(PLAN, "b", "train", 1, 70),
        Timing(OTHER, "a", "train", 1, 13),
    )


def test_only_what_was_measured_of_the_model_counts(store: SqlStore) -> None:
    timings = Timings(store, ACTIONS)
    ended(store, campaign(store, 1, "other:1"), 1, "train", {"d0": 10})
    ended(store, campaign(store, 2, "mm:1"), 1, "train", {"d0": 10})
    ended(store, campaign(store, 3, ""), 1, "train", {"d0": 10})
    mine = campaign(store, 4, "m:3")
    ended(store, mine, 1, "train", {"d0": 10}, train_steps=0)
    ended(store, mine, 2, "train", {"d0": None})  # type: ignore[dict-item]
    ended(store, mine, 3, "train", {"silent": 10, "stranger": 10})
    assert timings.of_model("m") == ()
    assert timings.of_model("_") == ()
    ended(store, mine, 4, "train", {"d0": 12})
    assert timings.of_model("m") == (Timing(PLAN, "a", "train", 1, 12),)


def test_of_many_rounds_only_the_newest_are_looked_at_whole_and_of_each_action(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENOUGH_REPORTS", 3)
    old, new = campaign(store, 1), campaign(store, 2)
    ended(store, old, 1, "train", {"d0": 1000})
    ended(store, old, 2, "score-last", {"d0": 7}, train_steps=0)
    ended(store, new, 1, "train", {"d0": 20, "d3": 20})
    ended(store, new, 2, "train", {"d0": 10, "d1": 14})
    assert Timings(store, ACTIONS).of_model("m") == (
        Timing(PLAN, "a", "score", 1, 7),
        Timing(PLAN, "a", "train", 3, 14),
        Timing(PLAN, "b", "train", 1, 20),
    )
    monkeypatch.setattr(module, "ENOUGH_ROUNDS", 1)
    assert [one.reports for one in Timings(store, ACTIONS).of_model("m")] == [1, 2]
