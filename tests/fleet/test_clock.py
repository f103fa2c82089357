"""Virtual time: what is due happens in order, and nothing waits."""

from __future__ import annotations

from fleet.clock import SystemClock, VirtualClock


def test_actions_run_in_order_of_time_and_then_of_asking() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, clock.monotonic()))

    clock.call_later(3.0, lambda: note("late"))
    clock.call_later(1.0, lambda: note("first"))
    clock.call_later(1.0, lambda: note("second"))
    clock.sleep(2.0)
    assert seen == [("first", 1.0), ("second", 1.0)]
    assert clock.monotonic() == 2.0
    clock.sleep(2.0)
    assert seen[-1] == ("late", 3.0)


def test_an_action_may_ask_for_the_next_one_within_the_same_wait() -> None:
    clock = VirtualClock()
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(clock.monotonic())
        clock.call_later(1.0, tick)

    clock.call_later(1.0, tick)
    clock.sleep(4.5)
    assert ticks == [1.0, 2.0, 3.0, 4.0]


def test_the_wall_clock_can_step_back_while_the_monotonic_one_goes_on() -> None:
    clock = VirtualClock(wall=1000.0)
    clock.sleep(10.0)
    clock.step_wall(-60.0)
    assert (clock.monotonic(), clock.wall()) == (10.0, 950.0)


def test_a_negative_wait_is_none() -> None:
    clock = VirtualClock()
    clock.sleep(-1.0)
    assert clock.monotonic() == 0.0
    before = SystemClock().monotonic()
    SystemClock().sleep(-1.0)
    assert SystemClock().monotonic() >= before
