"""What befalls a device in virtual time, as its world has it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.clock import SECOND
from simulator.world.availability import Interval
from simulator.world.faults import Fault
from simulator.world.fields import DAY_SECONDS
from simulator.world.world import World


class Reset(NamedTuple):
    """The core starts again."""


class BrownOut(NamedTuple):
    """Power goes in the ``operation``-th flash operation from then, which is torn."""

    operation: int
    seed: int


class BitFlip(NamedTuple):
    """A bit of flash or SRAM turns over."""

    address: int
    bit: int


class Reach(NamedTuple):
    """It comes into reach of the network, or leaves it."""

    is_there: bool


class Sample(NamedTuple):
    """Its application records a sample."""

    label: int
    payload: bytes


Befalls = Reset | BrownOut | BitFlip | Reach | Sample


class Event(NamedTuple):
    """Something that happens to a device at a time, in nanoseconds."""

    at: int
    what: Befalls


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples that a device records while it runs."""

    codes: NDArray[np.int8]
    """(n, …)"""
    labels: NDArray[np.int64]
    """(n,)"""
    seconds: NDArray[np.float64]
    """(n,): when, in order."""


def events_of(world: World, number: int, recording: Recording) -> Iterator[Event]:
    """All that befalls a device, in order of time; perhaps endless."""
    parts: list[Iterator[tuple[float, Befalls]]] = [
        _reach(world, number),
        _faults(world, number),
        (
            (float(at), Sample(int(label), code.tobytes()))
            for at, label, code in zip(
                recording.seconds, recording.labels, recording.codes, strict=True
            )
        ),
    ]
    for at, what in heapq.merge(*parts, key=lambda one: one[0]):
        yield Event(round(at * SECOND), what)


def _reach(world: World, number: int) -> Iterator[tuple[float, Befalls]]:
    """When the device comes and goes: it is there, and its connection isn't broken."""
    is_there = True  # before anything was said
    for on, off in _without(world.availability(number)(0.0), world.outages(number)(0.0)):
        if on > 0.0 and is_there:
            yield (0.0, Reach(False))
            is_there = False
        if not is_there:
            yield (on, Reach(True))
        if math.isinf(off):
            return
        yield (off, Reach(False))
        is_there = False
    if is_there:
        yield (0.0, Reach(False))


def _without(there: Iterable[Interval], broken: Iterator[Interval]) -> Iterator[Interval]:
    """The first intervals less the second; both are disjoint and in order."""
    gap = next(broken, None)
    for on, off in there:
        start = on
        while gap is not None and gap[0] < off:
            if gap[1] > start:
                if gap[0] > start:
                    yield (start, gap[0])
                start = gap[1]
            if gap[1] >= off:
                break
            gap = next(broken, None)
        if start < off:
            yield (start, off)


def _faults(world: World, number: int) -> Iterator[tuple[float, Befalls]]:
    faults, day = world.config.faults, 0
    rates = (
        faults.resets_per_day,
        faults.brown_outs_per_day,
        faults.flash_bit_flips_per_day,
        faults.sram_bit_flips_per_day,
    )
    while any(rates):
        until = (day + 1) * DAY_SECONDS
        for fault in world.faults(number, until, day * DAY_SECONDS):
            yield fault.at_seconds, _befalls(fault)
        day += 1


def _befalls(fault: Fault) -> Befalls:
    match fault.kind:
        case "reset":
            return Reset()
        case "brown-out":
            return BrownOut(fault.parameters["operation"], fault.parameters["seed"])
        case _:
            return BitFlip(fault.parameters["address"], fault.parameters["bit"])
