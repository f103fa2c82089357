"""What `hello` tells: who is there, how old that is, and only what changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from fleet.errors import GatewayError
from fleet.gateway.changes import Changes
from fleet.gateway.replies import PAGE
from fleet.gateway.retained import QUIET_SECONDS
from fleet.protocol import DeviceState, topics
from tests.fleet.gateway.bench import Bench
from tests.fleet.gateway.deltas import CAMPAIGN, FLEET, announcement


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def entry(bench: Bench, device: str = "a") -> dict[str, Any]:
    (found,) = [one for one in bench.ask("hello")["devices"] if one["device"] == device]
    return found


def connect(bench: Bench) -> None:
    bench.run(bench.core.connected())


def comes(bench: Bench, *devices: str, retained: bool = False) -> None:
    bench.announce(*devices, retained=retained)
    for device in devices:
        bench.status(device, DeviceState.IDLE, retained=retained)


# ---- age ---------------------------------------------------------------------------------


def test_a_retained_message_does_not_make_a_device_look_alive(bench: Bench) -> None:
    connect(bench)
    comes(bench, "a")
    bench.pass_time(500)
    connect(bench)
    comes(bench, "a", retained=True)
    found = entry(bench)
    assert (found["online"], found["stale"]) == (True, False)
    assert found["seen_age_seconds"] == pytest.approx(500)
    assert found["last_seen"] == pytest.approx(bench.clock.wall() - 500)
    bench.status("a", DeviceState.IDLE)
    assert entry(bench)["seen_age_seconds"] == 0


def test_the_age_goes_on_over_a_restart_and_a_step_of_the_wall_clock(bench: Bench) -> None:
    connect(bench)
    comes(bench, "a")
    bench.pass_time(1)
    bench.pass_time(60)
    bench.clock.step_wall(-3600)
    assert entry(bench)["seen_age_seconds"] == pytest.approx(61)
    bench.clock.step_wall(3600)
    bench.pass_time(39)
    bench.crash()
    found = entry(bench)
    assert found["seen_age_seconds"] == pytest.approx(100, abs=1)
    assert (found["online"], found["stale"]) == (False, True)


def test_a_device_that_was_never_heard_itself_is_as_old_as_time(bench: Bench) -> None:
    connect(bench)
    comes(bench, "a", retained=True)
    found = entry(bench)
    assert found["last_seen"] == 0
    assert found["seen_age_seconds"] == pytest.approx(bench.clock.wall())
    bench.crash()
    assert entry(bench)["last_seen"] == 0


def test_who_is_only_in_the_store_is_stale_and_not_online(bench: Bench) -> None:
    connect(bench)
    comes(bench, "a", "b")
    bench.crash()
    connect(bench)
    comes(bench, "a", retained=True)
    assert (entry(bench, "a")["stale"], entry(bench, "a")["online"]) == (False, True)
    assert (entry(bench, "b")["stale"], entry(bench, "b")["online"]) == (True, False)


def test_after_a_reconnection_devices_are_stale_only_once_the_broker_has_told_all(
    bench: Bench,
) -> None:
    connect(bench)
    comes(bench, "a", "b")
    bench.pass_time(10)
    connect(bench)
    comes(bench, "a", retained=True)
    assert not entry(bench, "b")["stale"]
    cursor = bench.ask("hello")["cursor"]
    bench.pass_time(QUIET_SECONDS)
    (changed,) = bench.ask("hello", cursor=cursor)["devices"]
    assert (changed["device"], changed["stale"], changed["online"]) == ("b", True, False)


def test_a_device_that_says_goodbye_is_offline_but_not_stale(bench: Bench) -> None:
    connect(bench)
    comes(bench, "a")
    bench.status("a", DeviceState.OFFLINE)
    assert (entry(bench)["stale"], entry(bench)["online"]) == (False, False)


@pytest.mark.parametrize(
    ("battery", "percent", "charging"),
    [
        (0, 0, False),
        (100, 100, False),
        (101, None, None),
        (128, 0, True),
        (228, 100, True),
        (229, None, None),
        (255, None, None),
    ],
)
def test_a_battery_is_a_charge_and_whether_something_feeds_it_or_nobody_knows(
    bench: Bench, battery: int, percent: int | None, charging: bool | None
) -> None:
    bench.announce("a", battery=battery)
    assert (entry(bench)["battery_percent"], entry(bench)["charging"]) == (percent, charging)
    assert entry(bench)["candidate"] == ""


# ---- changes -----------------------------------------------------------------------------


def test_hello_tells_what_changed_since_the_cursor(bench: Bench) -> None:
    connect(bench)
    comes(bench, "a", "b", "c")
    first = bench.ask("hello", cursor=0)
    assert [one["device"] for one in first["devices"]] == ["a", "b", "c"]
    assert not first["more"]
    nothing = bench.ask("hello", cursor=first["cursor"])
    assert (nothing["devices"], nothing["rounds"]) == ([], [])
    assert nothing["cursor"] == first["cursor"]
    bench.status("b", DeviceState.TRAINING)
    second = bench.ask("hello", cursor=first["cursor"])
    assert [(one["device"], one["state"]) for one in second["devices"]] == [("b", "training")]
    # Asking again from the same place tells the same: a lost reply costs nothing.
    assert bench.ask("hello", cursor=first["cursor"])["devices"] == second["devices"]


def test_only_rounds_that_changed_are_told(bench: Bench) -> None:
    bench.announce("a", "b")
    bench.start(names=["a"])
    bench.start(round=2, names=["b"])
    first = bench.ask("hello")
    assert [one["round"] for one in first["rounds"]] == [1, 2]
    assert first["rounds"][0].keys() == {
        "campaign", "round", "state", "late", "duplicate", "refused"
    }  # fmt: skip
    bench.arrives(topics.delta(FLEET, "north", "b"), b"nonsense")
    second = bench.ask("hello", cursor=first["cursor"])
    assert [(one["round"], one["refused"]) for one in second["rounds"]] == [(2, {"malformed": 1})]
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    third = bench.ask("hello", cursor=second["cursor"])
    assert [(one["round"], one["state"]) for one in third["rounds"]] == [(1, "cancelled")]


def test_a_cursor_of_an_earlier_process_asks_for_everything(bench: Bench) -> None:
    comes(bench, "a", "b")
    cursor = bench.ask("hello")["cursor"]
    bench.crash()
    assert len(bench.ask("hello", cursor=cursor)["devices"]) == 2


@pytest.mark.parametrize("cursor", [-1, "1", 1.5, 1 << 63, True, None])
def test_a_cursor_that_is_none_is_refused(bench: Bench, cursor: Any) -> None:
    with pytest.raises(GatewayError, match="hello: cursor must be"):
        bench.ask("hello", cursor=cursor)


def test_hello_is_bounded_whatever_the_number_of_devices(bench: Bench) -> None:
    names = [f"cow-{number}" for number in range(1200)]
    payload = announcement().encode()
    jobs = [bench.core.arrived(topics.announce(FLEET, name), payload, False) for name in names]
    bench.run(*jobs)
    told: list[str] = []
    cursor, more = 0, True
    while more:
        reply = bench.ask("hello", cursor=cursor)
        assert len(reply["devices"]) <= PAGE
        assert len(cbor2.dumps(reply)) < 400_000
        told += [one["device"] for one in reply["devices"]]
        cursor, more = reply["cursor"], reply["more"]
    assert told == names


def test_changes_are_told_oldest_first_and_each_key_once() -> None:
    changes: Changes[str] = Changes(epoch=5)
    for key in ("a", "b", "a", "c", "b"):
        changes.touch(key)
    page = changes.since(0, 2)
    assert (page.keys, page.more) == (["a", "c"], True)
    changes.touch("a")
    page = changes.since(page.cursor, 2)
    assert (page.keys, page.more) == (["b", "a"], False)
    assert changes.since(page.cursor, 2).keys == []
    changes.forget("a")
    assert changes.since(0, 9).keys == ["c", "b"]
