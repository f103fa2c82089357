"""A device's battery in virtual time: what it has done is what it has used."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.clock import SECOND
from simulator.machines.protocol import CHARGING_FLAG
from simulator.world.availability import Intervals, is_there
from simulator.world.energy import Battery, EnergyMeter


@dataclass(frozen=True)
class Done:
    """What a device has done since the beginning."""

    instructions: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    flash_erases: int = 0
    flash_words: int = 0


class Power:
    """What feeds a device: a battery, or the mains where there is none."""

    def __init__(
        self, meter: EnergyMeter | None, battery: Battery | None, charging: Intervals
    ) -> None:
        """As it is at time 0; without a ``meter`` nobody knows what the device takes."""
        self._meter = meter
        self._battery = battery
        self._charging = charging
        self._at = 0.0
        self._done = Done()

    @property
    def milliwatt_hours(self) -> float:
        """All that the device has used; 0 where nobody knows."""
        return 0.0 if self._meter is None else self._meter.milliwatt_hours

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to run on."""
        return self._battery is not None and self._battery.is_empty

    def account(self, now: int, done: Done) -> int:
        """Take what was done since the last call from the battery; returns the port's byte."""
        at, before = now / SECOND, self._done
        used = 0.0
        if self._meter is not None:
            used = self._meter.used(
                at - self._at,
                instructions=done.instructions - before.instructions,
                bytes_up=done.bytes_up - before.bytes_up,
                bytes_down=done.bytes_down - before.bytes_down,
                erases=done.flash_erases - before.flash_erases,
                words=done.flash_words - before.flash_words,
            )
        self._at, self._done = at, done
        if self._battery is None:
            return 100 | CHARGING_FLAG
        percent = round(self._battery.advance(at, used))
        return percent | (CHARGING_FLAG if is_there(self._charging, at) else 0)
