"""A machine's serial line to a broker that is part of the test, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simulator.machines.protocol import Machine, StopReason
from tests.device_runtime.host_device import FakeBroker
from tests.simulator.conftest import WorldClock


def idle(machine: Machine, world: WorldClock) -> StopReason:
    """Run it until it waits for something, in the time that it says it needs."""
    while (reason := machine.run(1000.0)) is StopReason.SLICE_OVER:
        world.now += 1.0
    return reason


@dataclass
class Line:
    """A machine's line to a broker of its own."""

    machine: Machine
    world: WorldClock
    broker: FakeBroker = field(default_factory=FakeBroker)
    connected: bool = False
    reason: StopReason | None = None
    """Why the machine's last slice ended."""

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Run in virtual time."""
        end = self.world.now + seconds * 1000.0
        while not condition():
            assert self.world.now < end, f"nothing happened within {seconds} s"
            self.step()

    def hang_up(self) -> None:
        """The modem's stream is closed."""
        self.connected = False
        self.machine.set_data_carrier_detect(False)

    def step(self) -> None:
        self.reason = idle(self.machine, self.world)
        said = self.machine.take_transmitted()
        if self.connected:
            self.broker.receive(said)
        if self.machine.data_terminal_ready != self.connected:
            self.connected = self.machine.data_terminal_ready
            self.broker.connection_begins()
            self.machine.set_data_carrier_detect(self.connected)
        if self.connected and (data := self.broker.take()):
            assert self.machine.receive(data) == len(data)
        self.world.now += 5.0
