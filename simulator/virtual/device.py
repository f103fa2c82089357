"""A device in virtual time: the host library's client behind a modem, on a line that takes time.

All times are nanoseconds of the fleet's clock. A device is told what arrives and when, and asked to
go on until some instant; what it says meanwhile it hands over with the time at which that arrives
on the other side. It asks nobody anything in between, so that devices can go on side by side, in
any number of processes: whoever drives them never lets them run ahead of what may still arrive
(`simulator.virtual.pool`).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from simulator.clock import MILLISECOND
from simulator.machines.host import NEVER_AGAIN, HostMachine
from simulator.machines.host_structs import Standing
from simulator.machines.protocol import CHARGING_FLAG
from simulator.virtual.costs import WorkCosts
from simulator.virtual.events import (
    Befalls,
    BitFlip,
    BrownOut,
    Event,
    Reach,
    Reset,
    Sample,
)
from simulator.virtual.line import LineEnd
from simulator.virtual.power import Done, Power

NEVER = (1 << 63) - 1
BATTERY_LOOK_NANOSECONDS = 60_000_000_000
"""A device that does something looks at its battery so often at most."""
LEAST_PERCENT_TO_START = 5
REDIAL_NANOSECONDS = 500_000_000
_STANDING = Standing()


class Arrival(NamedTuple):
    """What reaches a device."""

    at: int
    kind: str
    """`carrier`: its call was answered; `refused`: it wasn't; `bytes`; `lost`: the stream ended."""
    call: int
    data: bytes = b""


class Said(NamedTuple):
    """What a device's modem tells the other side, at the time at which it arrives there."""

    at: int
    device: int
    kind: str
    """`dial`, `bytes` or `hang-up`."""
    call: int
    data: bytes = b""


class _Modem(enum.Enum):
    ON_HOOK = 0
    DIALLING = 1
    CONNECTED = 2
    PAUSING = 3
    LOST = 4


@dataclass(frozen=True)
class Clockwork:
    """A device's own clock, which goes ``rate`` times as fast as the fleet's."""

    rate: float = 1.0

    def local(self, now: int) -> int:
        """The device's nanoseconds at a time of the fleet."""
        return now if self.rate == 1.0 else int(now * self.rate)

    def duration(self, local: int) -> int:
        """How long so many of the device's nanoseconds take."""
        return local if self.rate == 1.0 else int(local / self.rate)


class Watch:
    """What a machine is given as clock: it says what it was set to, in milliseconds."""

    milliseconds = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.milliseconds


class VirtualDevice:
    """One device; owned by one `DeviceHost`."""

    def __init__(
        self,
        number: int,
        machine: HostMachine,
        watch: Watch,
        costs: WorkCosts,
        power: Power,
        line: Callable[[int], LineEnd],
        clockwork: Clockwork,
        events: Iterable[Event] = (),
    ) -> None:
        """``machine``, which goes by ``watch``, is powered on at time 0.

        ``line`` gives the way up for each call; ``events`` are in order of time.
        """
        self.number = number
        self.machine = machine
        self._watch = watch
        self._costs = costs.for_machine()
        self._clock_hz = costs.clock_hz
        self.power = power
        self._new_line = line
        self._line = line(0)
        self._clock = clockwork
        self._events = iter(events)
        self._event = next(self._events, None)
        self._arrivals: deque[Arrival] = deque()
        self._waiting = bytearray()
        """Bytes that have arrived at the modem and not at the board."""
        self._modem = _Modem.ON_HOOK
        self._call = 0
        self._redial_at = NEVER
        self._in_reach = True
        self._has_power = True
        self._busy_until = 0
        self._wake_at = 0
        self.resets = 0
        self.busy_nanoseconds = 0
        self._charge = 100 | CHARGING_FLAG
        self._look_at_battery_at = 0

    # ---- what its host asks ----------------------------------------------------------

    def arrives(self, arrival: Arrival) -> None:
        """Something will reach it; what is told later doesn't arrive earlier."""
        self._arrivals.append(arrival)

    @property
    def next_due(self) -> int:
        """When it has something to do, by all that it knows now."""
        due = min(max(self._wake_at, self._busy_until), self._redial_at)
        if not self._has_power:
            due = self._look_at_battery_at
        if self._arrivals:
            due = min(due, self._arrivals[0].at)
        if self._event is not None:
            due = min(due, self._event.at)
        return due

    def advance(self, until: int, said: list[Said]) -> None:
        """Do all that is due before ``until``; what it says is appended to ``said``."""
        while (now := self.next_due) < until:
            self._take_events(now)
            self._take_arrivals(now)
            if self._look_at_battery_at <= now:
                self._look_at_battery(now)
            if self._redial_at <= now:
                self._redial_at = NEVER
                self._dial(now, said)
            if self._has_power and max(self._wake_at, self._busy_until) <= now:
                self._run(now, until, said)

    # ---- time ------------------------------------------------------------------------

    def _run(self, now: int, until: int, said: list[Said]) -> None:
        """Let the firmware work from now on, until something else happens."""
        self._feed()
        end = min(until, self._next_from_outside())
        local = self._clock.local(now)
        standing = _STANDING
        data = self.machine.work(
            self._costs, local, max(local + 1, self._clock.local(end)), standing
        )
        took = self._clock.duration(standing.now - local)
        self.busy_nanoseconds += took
        after = self._busy_until = now + took
        is_busy, tick, has_power = standing.is_busy, standing.next_run_ms, standing.has_power
        self._wake_at = NEVER
        self._look_at_line(after, data, standing.dials, said)
        if not has_power:
            self._go_down(after)
            self._go_up(after)
        elif is_busy or data or self._feed():
            self._wake_at = after
        elif self._wake_at == NEVER and tick != NEVER_AGAIN:  # unless its modem has woken it up
            self._wake_at = after + self._clock.duration(max(1, tick) * MILLISECOND)

    def _next_from_outside(self) -> int:
        due = self._redial_at
        if self._arrivals:
            due = min(due, self._arrivals[0].at)
        if self._event is not None:
            due = min(due, self._event.at)
        return due

    # ---- the line --------------------------------------------------------------------

    def _take_arrivals(self, now: int) -> None:
        while self._arrivals and self._arrivals[0].at <= now:
            arrival = self._arrivals.popleft()
            if arrival.call != self._call or not self._in_reach or not self._has_power:
                continue  # of a call that has ended
            self._arrived(arrival, now)

    def _arrived(self, arrival: Arrival, now: int) -> None:
        match arrival.kind:
            case "carrier" if self._modem is _Modem.DIALLING:
                self._modem = _Modem.CONNECTED
                self.machine.set_data_carrier_detect(True)
                self._wake_at = min(self._wake_at, now)
            case "refused" if self._modem is _Modem.DIALLING:
                self._pause(now)
            case "bytes" if self._modem is _Modem.CONNECTED:
                self._waiting += arrival.data
                if self._feed():
                    self._wake_at = min(self._wake_at, now)
            case "lost" if self._modem is _Modem.CONNECTED:
                self._lose(now)

    def _feed(self) -> bool:
        """Move what waits to the board; returns whether something went."""
        if not self._waiting:
            return False
        taken = self.machine.receive(bytes(self._waiting))
        del self._waiting[:taken]
        return taken > 0

    def _look_at_line(self, now: int, data: bytes, wants: bool, said: list[Said]) -> None:
        """What the firmware did to its modem: what it sent, and whether DTR is up."""
        if data and self._modem is _Modem.CONNECTED:
            at = self._line.arrives(now, len(data))
            said.append(Said(at, self.number, "bytes", self._call, data))
        if not wants and self._modem is not _Modem.ON_HOOK:
            if self._modem is _Modem.CONNECTED:
                said.append(Said(self._line.arrives(now, 0), self.number, "hang-up", self._call))
            self._put_down()
            wants = self.machine.data_terminal_ready  # it may wait for just this
            self._wake_at = now
        if wants and self._modem is _Modem.ON_HOOK:
            self._dial(now, said)

    def _dial(self, now: int, said: list[Said]) -> None:
        if not self._in_reach or not self._has_power:
            self._pause(now)
            return
        self._call += 1
        self._line = self._new_line(self._call)
        self._modem = _Modem.DIALLING
        said.append(Said(self._line.arrives(now, 0), self.number, "dial", self._call))

    def _pause(self, now: int) -> None:
        self._modem = _Modem.PAUSING
        self._redial_at = now + REDIAL_NANOSECONDS if self._in_reach else NEVER

    def _lose(self, now: int) -> None:
        """The stream has ended; the firmware has to drop DTR before the next dial."""
        self._waiting.clear()
        self._modem = _Modem.LOST
        self.machine.set_data_carrier_detect(False)
        self._wake_at = min(self._wake_at, now)

    def _put_down(self) -> None:
        self._waiting.clear()
        self._modem = _Modem.ON_HOOK
        self._redial_at = NEVER
        self.machine.set_data_carrier_detect(False)

    # ---- from outside ----------------------------------------------------------------

    def _take_events(self, now: int) -> None:
        while self._event is not None and self._event.at <= now:
            event, self._event = self._event, next(self._events, None)
            self._befalls(event.what, now)

    def _befalls(self, what: Befalls, now: int) -> None:
        match what:
            case Reach(is_there=is_there):
                self._in_reach = is_there
                if not is_there and self._modem in (_Modem.CONNECTED, _Modem.DIALLING):
                    self._call += 1  # what is under way gets lost
                    self._lose(now)
                elif is_there and self._modem is _Modem.PAUSING:
                    self._redial_at = now
            case Sample(label=label, payload=payload):
                if self._has_power:
                    self.machine.record(label, payload)
            case Reset():
                if self._has_power:
                    self._go_down(now)
                    self._go_up(now)
            case BrownOut(operation=operation, seed=seed):
                self.machine.cut_power_at_flash_operation(operation, seed)
            case BitFlip(address=address, bit=bit):
                if not self.machine.flip(address, bit) and self._has_power:
                    # Nobody knows what the board would have done; its watchdog does this.
                    self._go_down(now)
                    self._go_up(now)

    def _look_at_battery(self, now: int) -> None:
        self._look_at_battery_at = now + BATTERY_LOOK_NANOSECONDS
        self._charge = charge = self.account(now)
        self.machine.set_battery(charge)
        if self.power.is_empty and self._has_power:
            self._go_down(now)
        elif not self._has_power and charge % CHARGING_FLAG >= LEAST_PERCENT_TO_START:
            self._go_up(now)

    def account(self, now: int) -> int:
        """Bring ``power`` up to date; returns what the battery tells."""
        done, traffic = self.machine.done, self.machine.traffic
        worked = done.forward_nanoseconds + done.train_nanoseconds
        return self.power.account(
            now,
            Done(
                instructions=worked * self._clock_hz // 1_000_000_000,
                bytes_up=traffic.up,
                bytes_down=traffic.down,
                flash_erases=done.flash_erases,
                flash_words=done.flash_words,
            ),
        )

    def _go_down(self, now: int) -> None:
        """Without power. Whoever is at the other end of its line isn't told."""
        self._call += 1
        self._waiting.clear()
        self._modem = _Modem.ON_HOOK
        self._redial_at = self._wake_at = NEVER
        self._busy_until = now
        self._has_power = False

    def _go_up(self, now: int) -> None:
        self.resets += 1
        self._has_power = True
        self._watch.milliseconds = self._clock.local(now) / MILLISECOND
        self.machine.power_on()
        self.machine.set_battery(self._charge)
        self._busy_until = self._wake_at = now
