"""What devices use of their batteries and of their flash.

One milliwatt hour is 3,600 millijoules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from codegen.firmware.boards import Board, FlashName
from simulator.world.availability import Intervals, Nights, never
from simulator.world.draws import generator
from simulator.world.fields import PositiveRange, Section, drawn
from simulator.world.links import Link

MILLIJOULES_PER_MILLIWATT_HOUR = 3600.0
Amount = Annotated[float, Field(ge=0.0)]


class Energy(Section):
    """Batteries, what feeds them, and what things cost."""

    battery_milliwatt_hours: PositiveRange | None = None
    """Each device has one; none where left out: something feeds all devices always."""
    charge_percent: PositiveRange = (100.0, 100.0)
    """Of each device's battery in the beginning."""
    charging: Nights | None = None
    """When something feeds a device; left out: never."""
    charging_milliwatts: Amount = 500.0
    """What goes into the battery then."""
    idle_milliwatts: Amount = 1.0
    """What a device takes while it doesn't compute."""
    active_milliwatts: Mapping[str, Annotated[float, Field(gt=0.0)]] = {}
    """What a board takes while it computes, by name; else what its own description says."""
    erase_millijoules: Amount = 40.0
    """Of a flash sector: 12 mA at 3.3 V for a second (STM32F407, a sector of 128 KB)."""
    program_microjoules_per_word: Amount = 0.63
    """The same for 16 µs."""
    erase_budget: Mapping[FlashName, Annotated[int, Field(ge=1)]] = {
        "internal": 10_000,
        "external": 100_000,
    }
    """How often a sector may be erased: least of the STM32F4 and F7, and of the N25Q128A."""

    @field_validator("charge_percent")
    @classmethod
    def _is_a_share(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[1] > 100.0:
            raise ValueError(f"ends at {ends[1]:g}; a full battery has 100")
        return ends

    @field_validator("battery_milliwatt_hours")
    @classmethod
    def _holds_something(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and ends[0] <= 0.0:
            raise ValueError("begins at 0; leave it out where something feeds all devices")
        return ends

    @model_validator(mode="after")
    def _each_flash_has_a_budget(self) -> Self:
        if len(self.erase_budget) < 2:
            raise ValueError("erase_budget: give one for internal and one for external flashes")
        return self

    def power(self, board: Board) -> float | None:
        """Milliwatts that the board takes while it computes; None where nobody says."""
        return self.active_milliwatts.get(board.name, board.active_milliwatts)

    def charging_of(self, seed: int, device: int) -> Intervals:
        """When something feeds the device."""
        if self.battery_milliwatt_hours is None and self.charging is None:
            return lambda since: iter([(0.0, math.inf)])
        if self.charging is None:
            return never
        hours = self.charging
        return lambda since: hours.intervals(seed, "charging", device, since)


@dataclass
class EnergyMeter:
    """What a device has used, in millijoules, by what it was used for."""

    active_milliwatts: float
    idle_milliwatts: float
    instructions_per_second: float
    """As the board runs them, whatever else makes the device slow."""
    up_microjoules_per_byte: float
    down_microjoules_per_byte: float
    erase_millijoules: float
    program_microjoules_per_word: float
    compute: float = field(default=0.0, init=False)
    idle: float = field(default=0.0, init=False)
    link: float = field(default=0.0, init=False)
    flash: float = field(default=0.0, init=False)

    @property
    def millijoules_per_instruction(self) -> float:
        """Of the microcontroller, while it computes."""
        return self.active_milliwatts / self.instructions_per_second

    @property
    def milliwatt_hours(self) -> float:
        """All that it has used."""
        whole = self.compute + self.idle + self.link + self.flash
        return whole / MILLIJOULES_PER_MILLIWATT_HOUR

    def used(
        self,
        seconds: float = 0.0,
        *,
        instructions: int = 0,
        bytes_up: int = 0,
        bytes_down: int = 0,
        erases: int = 0,
        words: int = 0,
    ) -> float:
        """Counts what happened within ``seconds``; gives the milliwatt hours of that.

        ``words`` were programmed. Where it doesn't compute, it idles.
        """
        before = self.milliwatt_hours
        self.compute += instructions * self.millijoules_per_instruction
        idle_seconds = max(seconds - instructions / self.instructions_per_second, 0.0)
        self.idle += idle_seconds * self.idle_milliwatts
        self.link += bytes_up * self.up_microjoules_per_byte / 1000
        self.link += bytes_down * self.down_microjoules_per_byte / 1000
        self.flash += erases * self.erase_millijoules
        self.flash += words * self.program_microjoules_per_word / 1000
        return self.milliwatt_hours - before


def meter_of(
    energy: Energy, board: Board, link: Link, clocks_per_instruction: float
) -> EnergyMeter | None:
    """A meter for a device with this board and link; None where nobody says what it takes."""
    power = energy.power(board)
    if power is None:
        return None
    return EnergyMeter(
        active_milliwatts=power,
        idle_milliwatts=energy.idle_milliwatts,
        instructions_per_second=board.clock_hz / clocks_per_instruction,
        up_microjoules_per_byte=link.kind.up_microjoules_per_byte,
        down_microjoules_per_byte=link.kind.down_microjoules_per_byte,
        erase_millijoules=energy.erase_millijoules,
        program_microjoules_per_word=energy.program_microjoules_per_word,
    )


class Battery:
    """A device's battery: what is in it at an instant, of what was used and what came in."""

    def __init__(
        self, milliwatt_hours: float, percent: float, charging: Intervals, milliwatts: float
    ) -> None:
        """As it is at 0 seconds; ``milliwatts`` come in while it is charged."""
        self.capacity = milliwatt_hours
        self.level = milliwatt_hours * percent / 100.0
        self._charging = charging
        self._milliwatts = milliwatts
        self._at = 0.0

    @property
    def percent(self) -> float:
        """Of its capacity."""
        return 100.0 * self.level / self.capacity

    @property
    def is_empty(self) -> bool:
        """Whether the device has nothing left."""
        return self.level <= 0.0

    def advance(self, until: float, used_milliwatt_hours: float) -> float:
        """Goes on to that instant, within which so much was used, evenly; gives the new percent.

        What comes in when it is full is gone, and so is what is used when it is empty.
        Raises ValueError for an instant before the last.
        """
        if until < self._at:
            raise ValueError(f"a battery can't go back from {self._at:g} s to {until:g} s")
        span = until - self._at
        if span == 0.0:
            self._change(-used_milliwatt_hours)
            return self.percent
        for on, off in self._charging(self._at):
            if on >= until:
                break
            begin, end = max(on, self._at), min(off, until)
            self._change(-used_milliwatt_hours * ((begin - self._at) / span))
            fed = self._milliwatts * (end - begin) / 3600.0
            self._change(fed - used_milliwatt_hours * ((end - begin) / span))
            self._at = end
        self._change(-used_milliwatt_hours * ((until - self._at) / span))
        self._at = until
        return self.percent

    def _change(self, milliwatt_hours: float) -> None:
        self.level = min(max(self.level + milliwatt_hours, 0.0), self.capacity)


def battery_of(energy: Energy, seed: int, device: int) -> Battery | None:
    """The device's battery at 0 seconds; None where something feeds it always."""
    if energy.battery_milliwatt_hours is None:
        return None
    random = generator(seed, "battery", device)
    return Battery(
        drawn(energy.battery_milliwatt_hours, random),
        drawn(energy.charge_percent, random),
        energy.charging_of(seed, device),
        energy.charging_milliwatts,
    )


class FlashWear:
    """What the sectors of a board's flashes stand."""

    def __init__(self, board: Board, budget: Mapping[FlashName, int]) -> None:
        """Sectors are numbered through, those of the external flash behind the internal ones."""
        self._budgets = np.array(
            [budget[name] for name, flash in board.flashes.items() for _ in flash.sectors]
        )

    def worst_share(self, erases: NDArray[np.uint32]) -> float:
        """Of its budget, of the sector that is worn most; above 1 it has outlived that.

        ``erases`` (n,) says how often each was erased; the last ones may be left out.
        """
        return float(np.max(erases / self._budgets[: len(erases)]))
