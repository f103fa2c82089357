"""Who leads, and what a service says of itself meanwhile, without Flower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fleet.clock import SystemClock
from fleet.coordinator.fleet_run import DRIVER
from fleet.coordinator.service import ProgressEvent
from fleet.coordinator.settings import CoordinatorSettings, RetentionSettings, SigningSettings
from fleet.protocol.keys import Keyring, SignedKeyring, SigningKey
from fleet.security import key_files
from fleet.service import serve
from fleet.service.serve import STARTING, Leader
from fleet.store import Events, SqlStore, SupersededError, Term
from fleet.store.tables import events
from tests.patience import wait_until


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
    with leader._beating():
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


def test_a_leader_beats_however_long_its_superlink_takes_to_start(
    leader: Leader, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.001)
    is_stopping, term = threading.Event(), Term(store, serve.SERVICE, "")
    beats: list[int] = []

    class Slow:
        address = "h:1"
        ca = None

        def start(self) -> None:
            first = term.seen()[1]
            wait_until(lambda: term.seen()[1] > first + 5, "beats")
            beats.append(term.seen()[1] - first)
            is_stopping.set()
            raise serve.StoreError("that is enough")

    monkeypatch.setattr(serve, "superlink_of", lambda _: Slow())
    leader.run(is_stopping)
    assert beats


def test_a_service_whose_keyring_is_anothers_says_so_and_starts_nothing(
    leader: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.001)
    key_files.make_signing_key(tmp_path, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC)
    task = key_files.make_signing_key(tmp_path, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    ring = SignedKeyring.sign(SigningKey.generate(), "barn", Keyring(1, task.public))
    key_files.write_keyring(tmp_path / key_files.KEYRING, ring)
    signing = SigningSettings(
        key=tmp_path / key_files.TASK_KEY,
        keyring=tmp_path / key_files.KEYRING,
        authority=tmp_path / key_files.AUTHORITY_PUBLIC,
    )
    leader._settings = leader._settings.model_copy(update={"signing": signing})

    def start(_: object) -> None:
        raise serve.StoreError("it is started")

    monkeypatch.setattr(serve, "superlink_of", start)
    is_stopping = threading.Event()
    thread = threading.Thread(target=leader.run, args=(is_stopping,))
    thread.start()
    try:
        wait_until(lambda: leader.problems() not in ([], [STARTING]), "a word")
        assert "isn't signed for fleet barn" in leader.problems()[0]
    finally:
        is_stopping.set()
        thread.join()


def test_a_leader_whose_term_was_taken_while_a_superlink_started_does_not_lead(
    leader: Leader, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.001)
    is_stopping, kept = threading.Event(), []

    class Slow:
        address = "h:1"
        ca = None

        def start(self) -> None:
            Term(store, serve.SERVICE, "another").take()
            wait_until(lambda: leader._superseded is not None, "the leader to notice")
            is_stopping.set()

    monkeypatch.setattr(serve, "superlink_of", lambda _: Slow())
    monkeypatch.setattr(serve, "Control", lambda *_: kept.append("led"))
    leader.run(is_stopping)
    assert (kept, leader.is_leading, leader.problems()) == ([], False, [])


def test_a_leader_that_is_superseded_keeps_nothing_any_more(
    leader: Leader, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.001)

    def loses() -> None:
        Term(store, serve.SERVICE, "another").take()
        wait_until(lambda: leader._superseded is not None, "the leader to notice")

    with pytest.raises(serve.SupersededError, match="the service is another now"):
        keep(leader, loses, lambda: pytest.fail("it goes on"))


def test_a_leader_whose_store_a_newer_program_has_brought_up_to_date_stops_and_says_so(
    leader: Leader, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.01)

    def upgrade() -> None:
        with store.writing() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        wait_until(lambda: leader._superseded is not None)

    with pytest.raises(SupersededError, match="by a newer version"):
        keep(leader, upgrade, lambda: None)
    (problem,) = leader.problems()
    assert "stop this one" in problem
    with pytest.raises(SupersededError):
        Term(store, serve.SERVICE, "the same again").take()


def test_a_leader_deletes_what_its_settings_keep_no_longer(
    store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.01)
    for number in range(3):
        Events(store).add("round", "c", {"round": number})
    with store.writing() as connection:
        connection.execute(sa.update(events).values(at=0.0))
    settings = CoordinatorSettings(fleet="barn", retention=RetentionSettings(events_days=1))
    leader = Leader(tmp_path / "c.toml", settings, store, SystemClock())
    keep(leader, *[lambda: None] * 5)
    assert len(Events(store).after(0)) == 1
    assert leader.cleaner.deleted["events"] == 2


def test_receivers_that_hang_do_not_keep_a_leader_from_its_work(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
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
    with leader._delivering():
        assert hangs.wait(60)
        assert len(keep(leader, *[lambda: None] * 5)) == 5
        is_released.set()


@pytest.mark.parametrize("error", [serve.StoreError("away"), KeyError("a defect")])
def test_deliveries_that_fail_are_tried_again_whatever_it_was(
    leader: Leader, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    steps = []

    class Away:
        def __init__(self, *_: Any) -> None:
            pass

        def step(self) -> int:
            steps.append(time.monotonic())
            raise error

    monkeypatch.setattr(serve, "Deliveries", Away)
    with leader._delivering():
        wait_until(lambda: len(steps) >= 3, "it to be tried again")


def test_a_service_that_waits_for_its_turn_has_no_problem(leader: Leader, store: SqlStore) -> None:
    assert leader.problems() == [STARTING]
    Term(store, serve.SERVICE, "another").take()
    assert leader.problems() == []


def test_a_service_that_failed_to_lead_says_why_while_it_still_has_the_term(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_stopping, said = threading.Event(), []

    def fail(_: threading.Event) -> None:
        raise serve.StoreError("no SuperLink")

    def wait(seconds: float) -> bool:
        said.append(leader.problems())
        is_stopping.set()
        return True

    monkeypatch.setattr(leader, "_lead", fail)
    monkeypatch.setattr(is_stopping, "wait", wait)
    leader.run(is_stopping)
    assert said == [["no SuperLink"]]
