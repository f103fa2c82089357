"""What goes wrong with devices: a schedule that follows from the seed, and deltas that lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from codegen.firmware.boards import Board
from simulator.world.draws import arrivals, generator
from simulator.world.fields import DAY_SECONDS, Range, Section, Share, drawn, has

FaultKind = Literal["reset", "brown-out", "flash-bit-flip", "sram-bit-flip"]
PerDay = Annotated[float, Field(ge=0.0, le=100_000.0)]


class Malicious(Section):
    """Devices that send another delta than what they have learnt."""

    share: Share = 0.0
    """Of the devices."""
    attack: Literal["sign-flip", "scaled", "random"] = "sign-flip"
    """Minus the delta; the delta; normal noise of the delta's length; each times `scale`."""
    scale: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0

    @model_validator(mode="after")
    def _is_a_lie(self) -> Self:
        if self.attack == "scaled" and self.scale == 1.0:
            raise ValueError("scale: a delta times 1 is the true one; scale it by something else")
        return self

    def poisoned(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """What is sent instead of ``values``; of the same type, integers cut off at its ends."""
        real = values.astype(np.float64)
        if self.attack == "sign-flip":
            real = -real
        elif self.attack == "random":
            noise = random.normal(size=real.shape)
            length = float(np.linalg.norm(noise))
            real = noise * (float(np.linalg.norm(real)) / length if length else 0.0)
        real *= self.scale
        if values.dtype.kind in "iu":
            ends = np.iinfo(values.dtype)
            # The largest int64 has no float; one that is cut off there stays within.
            largest = np.nextafter(float(ends.max), 0) if ends.bits == 64 else ends.max
            real = np.clip(np.rint(real), ends.min, largest)
        return real.astype(values.dtype)


class Faults(Section):
    """How often what goes wrong: on average for one device and day, at random instants."""

    resets_per_day: PerDay = 0.0
    """The core starts again; SRAM keeps its content."""
    brown_outs_per_day: PerDay = 0.0
    """Power goes in a flash operation, which is torn."""
    brown_out_operations: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """It is one of so many after the instant, all alike; 1: the next."""
    flash_bit_flips_per_day: PerDay = 0.0
    """A bit anywhere in the board's flashes."""
    sram_bit_flips_per_day: PerDay = 0.0
    """A bit anywhere in the board's SRAM."""
    clock_drift_ppm: Range = (0.0, 0.0)
    """How much faster a device's clock goes than the world's, in millionths; each has its own."""
    malicious: Malicious = Malicious()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a device."""

    at_seconds: float
    kind: FaultKind
    parameters: Mapping[str, int]
    """Of a brown-out `operation`, from 1, counted from the instant, and `seed`, as
    `Machine.cut_power_at_flash_operation` takes them. Of a bit flip `address`, as the core sees it,
    and `bit`, 0 … 7."""


def faults_of(
    faults: Faults, board: Board, seed: int, device: int, until: float, since: float = 0.0
) -> list[Fault]:
    """What goes wrong with the device in [since, until), in order."""
    rates: dict[FaultKind, float] = {
        "reset": faults.resets_per_day,
        "brown-out": faults.brown_outs_per_day,
        "flash-bit-flip": faults.flash_bit_flips_per_day,
        "sram-bit-flip": faults.sram_bit_flips_per_day,
    }
    found = []
    for kind, per_day in rates.items():
        for at, random in arrivals(
            seed,
            f"fault/{kind}",
            device,
            per_second=per_day / DAY_SECONDS,
            since=since,
        ):
            if at >= until:
                break
            found.append(Fault(at, kind, _parameters(kind, faults, board, random)))
    return sorted(found, key=lambda fault: fault.at_seconds)


def _parameters(
    kind: FaultKind, faults: Faults, board: Board, random: np.random.Generator
) -> dict[str, int]:
    if kind == "reset":
        return {}
    if kind == "brown-out":
        operation = 1 + int(random.integers(faults.brown_out_operations))
        return {"operation": operation, "seed": int(random.integers(2**31))}
    regions = [board.sram] if kind == "sram-bit-flip" else list(board.flashes.values())
    offset = int(random.integers(sum(region.bytes for region in regions)))
    for region in regions:
        if offset < region.bytes:
            break
        offset -= region.bytes
    return {"address": region.address + offset, "bit": int(random.integers(8))}


def clock_rate(faults: Faults, seed: int, device: int) -> float:
    """Seconds that the device's clock goes in a second of the world's."""
    return 1.0 + 1e-6 * drawn(faults.clock_drift_ppm, generator(seed, "clock drift", device))


def is_malicious(faults: Faults, seed: int, device: int) -> bool:
    """Whether the device's deltas lie."""
    return has(faults.malicious.share, seed, "malicious", device)


def poisoned(
    faults: Faults, values: NDArray[Any], seed: int, device: int, task: int
) -> NDArray[Any]:
    """The delta that the device sends for ``values``: those, unless it is a malicious one.

    ``task`` numbers what it was asked for, so that random deltas of two rounds differ.
    """
    if not is_malicious(faults, seed, device):
        return values
    return faults.malicious.poisoned(values, generator(seed, "poison", device, task))
