"""Who leads, and what a service says of itself meanwhile, without Flower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.clock import SystemClock
from fleet.coordinator.fleet_run import DRIVER
from fleet.coordinator.service import ProgressEvent
from fleet.coordinator.settings import CoordinatorSettings
from fleet.service import serve
from fleet.service.serve import STARTING, Leader
from fleet.store import SqlStore, Term


class Keeper:
    """Stands for Flower's run: each look is a step of a test, after the last one all stops."""

    def __init__(self, leader: Leader, is_stopping: threading.Event, *steps: Callable[[], None]):
        self.said: list[list[str]] = []
        self._leader = leader
        self._stopping = is_stopping
        self._steps = list(steps)

    def look(self, heartbeat: object, progress: object) -> None:
        self.said.append(self._leader.problems())
        self._steps.pop(0)()
        if not self._steps:
            self._stopping.set()


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    return SqlStore(f"sqlite:///{tmp_path / 'store.sqlite'}")


@pytest.fixture
def leader(store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leader:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.01)
    return Leader(tmp_path / "c.toml", CoordinatorSettings(fleet="barn"), store, SystemClock())


def keep(leader: Leader, *steps: Callable[[], None]) -> list[list[str]]:
    """What the service says at each look while it leads."""
    is_stopping = threading.Event()
    keeper = Keeper(leader, is_stopping, *steps)
    assert leader._candidate.try_to_take()
    leader.is_leading = True
    leader._keep(keeper, is_stopping)  # type: ignore[arg-type]
    return keeper.said


def test_a_service_is_ready_when_a_server_app_beats_and_not_because_one_did_before(
    leader: Leader, store: SqlStore
) -> None:
    driver = Term(store, DRIVER, "of before")
    driver.take()

    def fails() -> None:
        leader._note(ProgressEvent("run-failed", None, {"error": "it crashed"}))

    said = keep(leader, lambda: None, driver.beat, fails, lambda: None, driver.beat, lambda: None)
    assert said == [[STARTING], [STARTING], [], ["it crashed"], ["it crashed"], []]


def test_receivers_that_hang_do_not_keep_a_leader_from_its_beats(
    leader: Leader, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, is_released = threading.Event(), threading.Event()

    class Hanging:
        def __init__(self, *_: Any) -> None:
            pass

        def step(self) -> int:
            hangs.set()
            assert is_released.wait(60)
            return 0

    monkeypatch.setattr(serve, "Deliveries", Hanging)
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.0)
    term = Term(store, serve.SERVICE, "")
    with leader._delivering():
        assert hangs.wait(60)
        keep(leader, *[lambda: None] * 5)
        beats = term.seen()[1]
        is_released.set()
    assert beats >= 5


def test_webhooks_whose_database_is_away_are_tried_again(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    class Away:
        def __init__(self, *_: Any) -> None:
            pass

        def step(self) -> int:
            steps.append(time.monotonic())
            raise serve.StoreError("the database is away")

    monkeypatch.setattr(serve, "Deliveries", Away)
    with leader._delivering():
        while len(steps) < 3:
            time.sleep(0.001)


def test_a_service_that_waits_for_its_turn_has_no_problem(leader: Leader, store: SqlStore) -> None:
    assert leader.problems() == [STARTING]
    Term(store, serve.SERVICE, "another").take()
    assert leader.problems() == []
