"""When devices are there: on and off by the hour, by the second, or by a file.

Time is in seconds since the world began, which is midnight. An interval is [on, off). Those of a
device are disjoint and in order, and what they are after an instant doesn't depend on who asked
for those before.
"""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from simulator.errors import WorldError
from simulator.world.draws import generator
from simulator.world.fields import (
    DAY_SECONDS,
    HOUR_SECONDS,
    PositiveRange,
    Section,
    Share,
    drawn,
)
from simulator.world.population import device_name

Interval: TypeAlias = tuple[float, float]
"""[on, off) in seconds since the world began; off may be infinite."""
Intervals: TypeAlias = Callable[[float], Iterator[Interval]]
"""The intervals of a device that end after an instant, in order; perhaps endless."""

IntervalsOf: TypeAlias = Callable[[int], Intervals]
"""The same by the device's number."""


def never(since: float) -> Iterator[Interval]:
    """The intervals of what never happens."""
    del since
    return iter(())


class DailyHours(Section):
    """Some hours of each day, or most, for each device its own."""

    begins_hours: PositiveRange = (0.0, 24.0)
    """The hour at which it begins; each device has one."""
    lasts_hours: PositiveRange = (8.0, 16.0)
    """Each device has one."""
    varies_hours: Annotated[float, Field(ge=0.0, lt=12.0)] = 0.0
    """By so much it begins earlier or later on a day, drawn each day."""
    days_share: Share = 1.0
    """On so many days; on the others not at all."""

    @model_validator(mode="after")
    def _days_dont_overlap(self) -> Self:
        if self.begins_hours[1] > 24.0:
            raise ValueError(f"begins_hours: ends at {self.begins_hours[1]:g}; a day has 24")
        if self.lasts_hours[0] <= 0.0:
            raise ValueError("lasts_hours: begins at 0; give something more")
        if self.lasts_hours[1] + 2 * self.varies_hours >= 24.0:
            raise ValueError(
                f"lasts_hours: {self.lasts_hours[1]:g} and twice varies_hours make "
                f"{self.lasts_hours[1] + 2 * self.varies_hours:g} hours; stay below 24, or use "
                "kind: always"
            )
        return self

    def intervals(self, seed: int, purpose: str, device: int, since: float) -> Iterator[Interval]:
        """Those that end after ``since``, endless unless ``days_share`` is 0."""
        if self.days_share == 0.0:
            return
        random = generator(seed, purpose, device)
        begins, lasts = drawn(self.begins_hours, random), drawn(self.lasts_hours, random)
        # The first that can reach into `since` may have begun late the day before.
        for day in count(math.floor(since / DAY_SECONDS) - 2):
            today = generator(seed, purpose, device, day)
            shift = float(today.uniform(-self.varies_hours, self.varies_hours))
            on = day * DAY_SECONDS + (begins + shift) * HOUR_SECONDS
            off = on + lasts * HOUR_SECONDS
            if today.random() < self.days_share and off > max(since, 0.0):
                yield max(on, 0.0), off


class Nights(DailyHours):
    """The hours at which people charge what they carry."""

    begins_hours: PositiveRange = (21.0, 24.0)
    lasts_hours: PositiveRange = (5.0, 9.0)


class AvailabilityKind(Section, ABC):
    """What every kind has."""

    @abstractmethod
    def of_fleet(self, seed: int, charging: IntervalsOf, folder: Path) -> IntervalsOf:
        """When each device is there; ``charging`` says when something feeds it.

        Paths in the description begin in ``folder``.
        """


class Always(AvailabilityKind):
    """Always there."""

    kind: Literal["always"] = "always"

    def of_fleet(self, seed: int, charging: IntervalsOf, folder: Path) -> IntervalsOf:
        """See `AvailabilityKind`."""
        del seed, charging, folder
        return lambda device: lambda since: iter([(0.0, math.inf)])


class Diurnal(DailyHours, AvailabilityKind):
    """There for some hours of each day."""

    kind: Literal["diurnal"] = "diurnal"

    def of_fleet(self, seed: int, charging: IntervalsOf, folder: Path) -> IntervalsOf:
        """See `AvailabilityKind`."""
        del charging, folder
        return lambda device: partial(self.intervals, seed, "availability", device)


class WhileCharging(AvailabilityKind):
    """There while something feeds it: the hours of `energy.charging`."""

    kind: Literal["charging"] = "charging"

    def of_fleet(self, seed: int, charging: IntervalsOf, folder: Path) -> IntervalsOf:
        """See `AvailabilityKind`."""
        del seed, folder
        return charging


class DutyCycle(AvailabilityKind):
    """On for a while, off for a while, and so on; each device begins somewhere in its cycle."""

    kind: Literal["duty-cycle"] = "duty-cycle"
    on_seconds: PositiveRange
    """Each device has one."""
    off_seconds: PositiveRange
    """Each device has one."""

    @model_validator(mode="after")
    def _is_on_and_off(self) -> Self:
        for name in ("on_seconds", "off_seconds"):
            if getattr(self, name)[0] <= 0.0:
                raise ValueError(f"{name}: begins at 0; give something more")
        return self

    def of_fleet(self, seed: int, charging: IntervalsOf, folder: Path) -> IntervalsOf:
        """See `AvailabilityKind`."""
        del charging, folder
        return lambda device: partial(self._intervals, seed, device)

    def _intervals(self, seed: int, device: int, since: float) -> Iterator[Interval]:
        random = generator(seed, "availability", device)
        on, off = drawn(self.on_seconds, random), drawn(self.off_seconds, random)
        first = -float(random.uniform(0.0, on + off))
        for number in count(max(math.floor((since - first) / (on + off)) - 1, 0)):
            begin = first + number * (on + off)
            if begin + on > max(since, 0.0):
                yield max(begin, 0.0), begin + on


class FromFile(AvailabilityKind):
    """Intervals of one's own: a CSV with the columns device, from_seconds, to_seconds."""

    kind: Literal["file"] = "file"
    path: Annotated[str, Field(min_length=1)]
    """Devices are told by number or name; one that isn't in the file is never there."""

    def of_fleet(self, seed: int, charging: IntervalsOf, folder: Path) -> IntervalsOf:
        """See `AvailabilityKind`. Raises: WorldError naming the line that is wrong."""
        del seed, charging
        known = read_intervals(folder / self.path)
        return lambda device: (
            lambda since: iter([one for one in known.get(device, ()) if one[1] > since])
        )


Availability = Annotated[
    Always | Diurnal | WhileCharging | DutyCycle | FromFile, Field(discriminator="kind")
]


def read_intervals(path: Path) -> Mapping[int, tuple[Interval, ...]]:
    """Intervals of a CSV file by device number; each device's in order, joined where they meet.

    Raises: WorldError naming the line that is wrong.
    """
    given: dict[int, list[Interval]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if set(rows.fieldnames or ()) != set(_COLUMNS):
                raise WorldError(
                    f"{path}: the first line is {','.join(rows.fieldnames or ()) or 'empty'}; "
                    f"make it {','.join(_COLUMNS)}"
                )
            for row in rows:
                try:
                    device, interval = _interval(row)
                except ValueError as error:
                    raise WorldError(f"{path}:{rows.line_num}: {error}") from None
                given.setdefault(device, []).append(interval)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorldError(f"availability.path: {path} can't be read as CSV ({error})") from None
    return {device: _joined(intervals) for device, intervals in given.items()}


_COLUMNS = ("device", "from_seconds", "to_seconds")


def _interval(row: Mapping[str, str]) -> tuple[int, Interval]:
    if len(row) != len(_COLUMNS) or None in row.values():
        raise ValueError(f"give {len(_COLUMNS)} values, one for each column")
    name, on, off = row["device"], float(row["from_seconds"]), float(row["to_seconds"])
    if not 0.0 <= on < off:
        raise ValueError(f"{on:g} to {off:g} is no interval; give 0 <= from_seconds < to_seconds")
    number = name.removeprefix(device_name(0).rstrip("0"))
    if not number.isdecimal():
        raise ValueError(f"{name!r} is no device; give a number, or a name as {device_name(0)}")
    return int(number), (on, off)


def _joined(intervals: list[Interval]) -> tuple[Interval, ...]:
    joined: list[Interval] = []
    for on, off in sorted(intervals):
        if joined and on <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(off, joined[-1][1]))
        else:
            joined.append((on, off))
    return tuple(joined)


def is_there(intervals: Intervals, at: float) -> bool:
    """Whether the device is there at this instant."""
    on, off = next(intervals(at), (math.inf, math.inf))
    return on <= at < off


def next_change(intervals: Intervals, after: float) -> float:
    """The first instant after ``after`` at which the device comes or goes; infinite: never."""
    on, off = next(intervals(after), (math.inf, math.inf))
    return on if on > after else off
