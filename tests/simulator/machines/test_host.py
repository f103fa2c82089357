"""Host code goes by the clock that it is given, whatever the computer's says."""

from __future__ import annotations

from pathlib import Path

from codegen.firmware.bundle import Bundle
from simulator.machines.host import HostMachine, build_host_library
from simulator.machines.protocol import StopReason


class HurriedClock:
    """Goes on by ``step`` milliseconds whenever somebody looks."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_slice_ends_by_the_clock_that_it_is_given(digits: Bundle, tmp_path: Path) -> None:
    clock = HurriedClock()
    library = build_host_library(digits, tmp_path / "device.so")
    machine = HostMachine(digits, library, clock=clock)
    clock.step = 60_000.0
    assert machine.run(50_000.0) is StopReason.SLICE_OVER
    clock.step = 0.0
    assert machine.run(50_000.0) is StopReason.IDLE
