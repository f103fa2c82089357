"""Programs that wait side by side."""

from __future__ import annotations

from simulator.experiments.processes import Processes, SharedStore, WaitingClock
from simulator.experiments.window_clock import WindowClock
from tests.simulator.experiments.test_window_clock import NoDevices


def test_programs_go_on_when_what_they_wait_for_has_come() -> None:
    clock = WindowClock(NoDevices(), lambda said: None)
    processes, said, bell = Processes(clock), list[str](), list[str]()

    def first(own: WaitingClock) -> None:
        own.wait(10.0, lambda: bool(bell))
        said.append(f"bell at {own.monotonic():.1f}")
        own.sleep(1.0)
        said.append(f"first ends at {own.monotonic():.1f}")

    def second(own: WaitingClock) -> None:
        own.call_later(2.0, lambda: bell.append("rings"))
        own.sleep(4.0)
        said.append(f"second ends at {own.monotonic():.1f}")

    processes.start("first", first)
    processes.start("second", second)
    processes.advance(5.0)
    assert said == ["bell at 2.0", "first ends at 3.0", "second ends at 4.0"]
    assert clock.monotonic() == 5.0


def test_a_killed_program_ends_at_its_step_and_tidies_nothing_up() -> None:
    clock = WindowClock(NoDevices(), lambda said: None)
    processes, store, done = Processes(clock), SharedStore(clock=clock), list[str]()
    store.on_commit = processes.step

    def run(own: WaitingClock) -> None:
        try:
            while True:
                own.sleep(1.0)
                with store.writing():
                    done.append("written")
                done.append("told")
        except Exception:
            done.append("tidied up")

    process = processes.start("one", run)
    processes.advance(1.5)
    process.kill_after(1)  # behind its next transaction
    processes.advance(5.0)
    assert not process.lives
    assert process.error is None
    assert done == ["written", "told", "written"]
    store.close()


def test_what_a_program_lets_out_is_kept_with_it() -> None:
    processes = Processes(WindowClock(NoDevices(), lambda said: None))

    def fail(own: WaitingClock) -> None:
        own.sleep(1.0)
        raise KeyError("nothing")

    failed, killed = processes.start("one", fail), processes.start("two", fail)
    killed.kill()
    processes.advance(2.0)
    assert isinstance(failed.error, KeyError)
    assert (killed.error, killed.lives) == (None, False)
