"""Terms over each database: one holder at a time, and nobody before it may still act."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from fleet.clock import VirtualClock
from fleet.store import SqlStore, SupersededError, Term


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    one = SqlStore(new_database(request.param), VirtualClock())
    yield one
    one.close()


def test_numbers_only_grow_and_a_superseded_holder_s_beat_is_refused(store: SqlStore) -> None:
    first, second = Term(store, "service", "a"), Term(store, "service", "b")
    assert (first.take(), second.take()) == (1, 2)
    second.beat()
    with pytest.raises(SupersededError, match="the service is b now"):
        first.beat()
    with pytest.raises(SupersededError):
        Term(store, "service", "c").beat()
    assert first.take() == 3
    assert Term(store, "service", "").seen()[2] == "a"


def test_roles_know_nothing_of_each_other(store: SqlStore) -> None:
    service, driver = Term(store, "service", "a"), Term(store, "driver", "b")
    assert (service.take(), driver.take()) == (1, 1)
    service.beat()
    driver.beat()


def test_a_silent_holder_is_replaced_and_one_that_beats_is_not(store: SqlStore) -> None:
    clock = VirtualClock()
    holder = Term(store, "service", "a")
    holder.take()
    candidate = Term(store, "service", "b").waiting(clock, 10.0)
    for _ in range(20):
        assert not candidate.try_to_take()
        clock.sleep(6.0)
        holder.beat()
    assert not candidate.try_to_take()
    clock.sleep(9.0)
    assert not candidate.try_to_take()
    clock.sleep(1.0)
    assert candidate.try_to_take()
    with pytest.raises(SupersededError, match="the service is b now"):
        holder.beat()


def test_a_wall_clock_that_is_set_replaces_nobody(store: SqlStore) -> None:
    clock = VirtualClock()
    Term(store, "service", "a").take()
    candidate = Term(store, "service", "b").waiting(clock, 10.0)
    assert not candidate.try_to_take()
    clock.step_wall(1e6)
    assert not candidate.try_to_take()


def test_a_term_that_was_given_up_is_had_at_once_and_its_giver_may_act_no_more(
    store: SqlStore,
) -> None:
    holder = Term(store, "service", "a")
    holder.take()
    holder.give_up()
    with pytest.raises(SupersededError):
        holder.beat()
    taken = Term(store, "service", "b")
    assert taken.waiting(VirtualClock(), 10.0).try_to_take()
    holder.give_up()
    taken.beat()


def test_of_two_candidates_that_both_saw_it_free_one_gets_it(store: SqlStore) -> None:
    for number, before in enumerate(("", "given up", "silent")):
        role = f"role-{number}"
        holder = Term(store, role, "h")
        if before:
            holder.take()
        if before == "given up":
            holder.give_up()
        clock = VirtualClock()
        terms = [Term(store, role, name) for name in "ab"]
        candidates = [one.waiting(clock, 10.0) for one in terms]
        # What the second has seen is what there was before the first took it.
        seen = terms[1].seen()
        if before == "silent":
            assert not any(one.try_to_take() for one in candidates)
            clock.sleep(10.0)
        assert candidates[0].try_to_take()
        terms[1].seen = lambda seen=seen: seen  # type: ignore[method-assign,misc]
        assert not candidates[1].try_to_take()
        terms[0].beat()


def test_of_many_candidates_at_once_one_gets_it(
    store: SqlStore,
) -> None:
    terms = [Term(store, "service", f"t{number}") for number in range(6)]
    ready = threading.Barrier(len(terms))
    got: list[str] = []

    def run(term: Term) -> None:
        candidate = term.waiting(VirtualClock(), 10.0)
        ready.wait()
        if candidate.try_to_take():
            got.append(term.holder)

    threads = [threading.Thread(target=run, args=(one,)) for one in terms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert terms[0].seen()[2] == got[0]
