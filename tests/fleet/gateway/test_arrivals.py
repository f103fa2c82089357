"""Folds by arrival: deltas leave a round in numbered parts while it runs, each of them once."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.errors import GatewayError
from fleet.gateway.replies import read_request
from fleet.gateway.rounds import RoundKey
from fleet.protocol import ReceiptResult, topics
from tests.fleet.gateway.bench import Bench
from tests.fleet.gateway.deltas import CAMPAIGN, FLEET, PLAN, a_task, delta_chunks, delta_of

VALUES = 40
NAMES = [f"cow-{number}" for number in range(12)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce(*NAMES)
    yield made
    made.store.close()


def begin(bench: Bench, names: list[str] = NAMES, number: int = 1, **changes: Any) -> None:
    fold = {"name": "arrivals"}
    bench.start(**{"names": names, "round": number, "values": VALUES, "fold": fold, **changes})


def delta_from(name: str, number: int) -> tuple[np.ndarray, int]:
    values, _ = delta_of(f"{name}/{number}", VALUES)
    return values, 1 + len(name) + number


def deliver(bench: Bench, name: str, number: int = 1) -> Any:
    values, samples = delta_from(name, number)
    return bench.send(name, delta_chunks(a_task(round=number), values, samples))


def take(bench: Bench, part: int, number: int = 1, **fields: Any) -> dict[str, Any]:
    return bench.ask("collect", campaign=CAMPAIGN, round=number, part=part, **fields)


def sum_of(names: list[str], number: int = 1) -> tuple[list[int], int]:
    """In Python integers."""
    deltas = [delta_from(name, number) for name in names]
    total = [sum(int(values[at]) * n for values, n in deltas) for at in range(VALUES)]
    return total, sum(n for _, n in deltas)


def assert_is_sum_of(answer: dict[str, Any], names: list[str], number: int = 1) -> None:
    (one,) = answer["sums"][PLAN]
    total, weight = sum_of(names, number)
    assert np.frombuffer(one["values"], "<i8").tolist() == total
    assert (one["weight"], one["devices"]) == (weight, len(names))


def test_a_part_has_what_came_until_it_was_asked_for_and_says_so_again(bench: Bench) -> None:
    begin(bench)
    for name in NAMES[:3]:
        deliver(bench, name)
    first = take(bench, 0)
    assert_is_sum_of(first, NAMES[:3])
    assert (first["state"], first["part"], first["through"]) == ("running", 0, 3)
    for name in NAMES[3:5]:
        deliver(bench, name)
    again = take(bench, 0)
    assert again["sums"] == first["sums"]
    assert (again["through"], again["accepted"]) == (3, 5)
    second = take(bench, 1)
    assert_is_sum_of(second, NAMES[3:5])
    assert second["through"] == 5


def test_the_standing_of_a_round_has_no_sums_also_when_it_has_ended(bench: Bench) -> None:
    begin(bench, NAMES[:2])
    deliver(bench, NAMES[0])
    assert "sums" not in bench.collect()
    closed = bench.closed()
    assert closed["accepted"] == 1
    assert "sums" not in closed
    assert_is_sum_of(take(bench, 0), NAMES[:1])


def test_deltas_are_in_one_part_each_whatever_comes_between(tmp_path: Path) -> None:
    for seed in range(15):
        folder = tmp_path / str(seed)
        folder.mkdir()
        bench, chance = Bench(folder), random.Random(seed)
        bench.announce(*NAMES)
        begin(bench)
        parts: dict[int, dict[str, Any]] = {}
        waiting, through, part = NAMES[:], 0, 0
        chance.shuffle(waiting)
        order = waiting[:]
        while waiting or through < len(order):
            match chance.randrange(6):
                case 0:
                    bench.crash()
                    bench.announce(*NAMES)
                case 1 if waiting != order:  # twice
                    twice = chance.choice([one for one in order if one not in waiting])
                    assert deliver(bench, twice).result == ReceiptResult.COUNTED
                case 2 if part:
                    assert take(bench, part - 1)["sums"] == parts[part - 1]["sums"]
                case 3:
                    parts[part] = take(bench, part)
                    assert_is_sum_of(parts[part], order[through : parts[part]["through"]])
                    through, part = parts[part]["through"], part + 1
                case _ if waiting:
                    assert deliver(bench, waiting.pop(0)).result == ReceiptResult.COUNTED
        weights = [one["sums"][PLAN][0]["weight"] for one in parts.values()]
        assert sum(weights) == sum_of(NAMES)[1]
        bench.store.close()


def test_a_gateway_killed_before_it_answers_closes_the_part_with_what_is_there_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(bench)
    deliver(bench, NAMES[0])
    real = bench.store.apply

    def dies(action: Any) -> Any:
        real(action)
        raise sqlite3.OperationalError("the disk is full")

    monkeypatch.setattr(bench.store, "apply", dies)
    with pytest.raises(Exception, match="disk is full"):
        take(bench, 0)
    bench.crash()
    bench.announce(*NAMES)
    deliver(bench, NAMES[1])
    assert_is_sum_of(take(bench, 0), NAMES[:2])


def test_who_has_delivered_gets_the_next_rounds_task_and_keeps_it(bench: Bench) -> None:
    begin(bench, NAMES[:2])
    early, slow = NAMES[:2]
    before = len(bench.link.published)
    deliver(bench, early)
    topic = topics.task(FLEET, early)
    assert [one.payload for one in bench.link.published[before:] if one.topic == topic] == [b""]
    refused = bench.start(names=[early, slow], round=2, values=VALUES, fold={"name": "arrivals"})
    assert refused["devices"] == {slow: "busy"}
    before = len(bench.link.published)
    assert deliver(bench, slow).result == ReceiptResult.COUNTED
    assert bench.collect()["state"] == "closed"
    assert [one for one in bench.link.published[before:] if one.topic == topic] == []
    assert deliver(bench, early, number=2).result == ReceiptResult.COUNTED
    assert_is_sum_of(take(bench, 0, number=2), [early], number=2)


def test_who_has_delivered_is_free_after_a_crash_and_its_old_task_is_taken_away(
    bench: Bench,
) -> None:
    begin(bench, NAMES[:2])
    old = bench.task(NAMES[0])
    deliver(bench, NAMES[0])
    bench.crash()
    bench.run(bench.core.connected())
    bench.announce(*NAMES)
    # The broker has forgotten nothing, and what the gateway wrote last hadn't gone out.
    bench.arrives(topics.task(FLEET, NAMES[0]), old.encode(), retained=True)
    published = bench.pass_time(3.0)
    sent = {one.topic: one.payload for one in published}
    assert sent[topics.task(FLEET, NAMES[0])] == b""
    assert sent[topics.task(FLEET, NAMES[1])] != b""
    assert bench.start(names=NAMES[:1], round=2, fold={"name": "arrivals"})["devices"] == {}


def test_a_watch_wakes_when_so_many_deltas_of_all_rounds_are_in_no_part(bench: Bench) -> None:
    begin(bench, NAMES[:4])
    begin(bench, NAMES[4:8], number=2)
    fields = {"rounds": [[CAMPAIGN, 1]], "wait_seconds": 5, "arrivals": {CAMPAIGN: 3}}
    is_due = read_request(bench.core, "watch", fields).is_due
    for name, number in ((NAMES[0], 1), (NAMES[4], 2)):
        deliver(bench, name, number)
    assert not is_due()
    deliver(bench, NAMES[5], 2)
    assert is_due()
    assert bench.ask("watch", **fields) == {"ended": 0, "arrived": {CAMPAIGN: 3}}
    take(bench, 0, number=2)
    assert not is_due()
    bench.crash()
    assert bench.core.logic.arrived(bytes.fromhex(CAMPAIGN)) == 1
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    assert bench.core.logic.arrived(bytes.fromhex(CAMPAIGN)) == 0


def test_whoever_waits_is_woken_by_each_delta(bench: Bench) -> None:
    woken: list[RoundKey] = []
    bench.core._round_changed = woken.append
    begin(bench, NAMES[:3])
    deliver(bench, NAMES[0])
    assert len(woken) == 1
    begin(bench, NAMES[3:6], number=2, fold={"name": "sums"})
    deliver(bench, NAMES[3], 2)
    assert len(woken) == 1


REFUSED: list[tuple[str, Callable[[Bench], Any], str]] = [
    ("not begun", lambda bench: take(bench, 3), "part 3 of round 1 .* deltas go to 2"),
    ("taken", lambda bench: take(bench, 0), "part 0 of round 1 .* deltas go to 2"),
    ("no number", lambda bench: bench.collect(part="first"), "part must be a number"),
    ("negative", lambda bench: take(bench, -1), "part must be a number"),
    ("other fold", lambda bench: take(bench, 0, number=2), "has no parts; its fold is sums"),
    (
        "none",
        lambda bench: bench.ask("watch", rounds=[[CAMPAIGN, 1]], arrivals={CAMPAIGN: 0}),
        "numbers from 1 on",
    ),
    (
        "nobody",
        lambda bench: bench.ask("watch", rounds=[[CAMPAIGN, 1]], arrivals={"x": 1}),
        "16 hex digits",
    ),
]


@pytest.mark.parametrize(("what", "ask", "why"), REFUSED, ids=[one[0] for one in REFUSED])
def test_what_is_no_part_is_refused_and_changes_nothing(
    bench: Bench, what: str, ask: Callable[[Bench], Any], why: str
) -> None:
    begin(bench, NAMES[:4])
    begin(bench, NAMES[4:8], number=2, fold={"name": "sums"})
    deliver(bench, NAMES[0])
    take(bench, 0)
    deliver(bench, NAMES[1])
    second = take(bench, 1)
    with pytest.raises(GatewayError, match=why):
        ask(bench)
    assert take(bench, 1)["sums"] == second["sums"]


def test_a_cancelled_round_gives_no_part(bench: Bench) -> None:
    begin(bench, NAMES[:2])
    deliver(bench, NAMES[0])
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    answer = take(bench, 0)
    assert (answer["state"], answer["accepted"]) == ("cancelled", 1)
    assert "sums" not in answer
    assert deliver(bench, NAMES[1]).result == ReceiptResult.LATE


def test_only_the_last_part_is_kept_on_disk(bench: Bench) -> None:
    begin(bench)
    for part, name in enumerate(NAMES[:5]):
        deliver(bench, name)
        take(bench, part)
    bench.crash()
    with sqlite3.connect(bench.folder / "store.sqlite") as database:
        rows = database.execute("SELECT part FROM sums ORDER BY part").fetchall()
    assert rows == [(4,), (5,)]
