"""What each device's sensor has recorded, and when; what the lab has; what no device trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from simulator.errors import WorldError
from simulator.world.datasets.dataset import Samples
from simulator.world.datasets.registry import AnyDataset
from simulator.world.draws import generator
from simulator.world.drift import Sensor, Stuck
from simulator.world.fields import HOUR_SECONDS, PositiveRange, Section, Share, drawn, has
from simulator.world.partition import (
    Alike,
    BySubject,
    Iid,
    Indices,
    Partition,
    Pool,
    check_enough,
)

FLEET, HELD_OUT = "samples", "held-out samples"
"""Purposes of draws: the fleet's devices, and those that never train."""

PartOfData = Annotated[float, Field(gt=0.0, lt=1.0)]
Least = Annotated[int, Field(ge=1)]


class Data(Section):
    """A data set, who has which part of it, and how devices see it."""

    dataset: AnyDataset
    lab_share: PartOfData | None = None
    """What the lab has for the first model: of all samples, whole subjects where they are known.
    Left out: what the data set itself says, perhaps nothing."""
    held_out_share: PartOfData | None = None
    """What no device of the fleet has, of all that isn't the lab's; the same way."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which these are; not the experiment's seed, since the first model belongs to them."""
    partition: Partition = Iid()
    """Who has which of the rest."""
    samples_per_device: PositiveRange | None = None
    """Each device draws so many for itself, and others may have the same. Left out: all are dealt
    out, each to exactly one device."""
    min_samples: Least = 3
    """Dealt out, a device has so many at least; with fewer than 3 it can't score itself."""
    held_out_devices: Least | None = None
    """Devices beside the fleet that never train and have what is held out. Left out: one for each
    held-out subject, or one."""
    order: Literal["shuffled", "recorded"] = "shuffled"
    """Of a device's samples in its log; `recorded`: as in the data set."""
    recorded_over_hours: Annotated[float, Field(ge=0.0)] = 0.0
    """Samples come at random instants within so many hours; 0: all are there in the beginning."""
    sensor: Sensor | None = None
    """How devices see samples; left out: as the lab does."""
    stuck: Stuck = Stuck()
    unseen_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of what a device's sensor sees that is never recorded: what it has learnt is scored on that.
    A device that chooses between models by its own held-out samples is fooled by those."""
    shuffled_labels: Share = 0.0
    """Of the devices: labels are right in number, but each may stand at any of their samples."""

    @model_validator(mode="after")
    def _sizes_are_said_once(self) -> Self:
        if self.samples_per_device is None:
            return self
        if self.samples_per_device[0] < 1.0:
            raise ValueError("samples_per_device: begins below 1; give one sample at least")
        if not isinstance(self.partition, BySubject) and self.partition.sizes != Alike():
            raise ValueError("samples_per_device: partition.sizes says already; leave one out")
        return self


@dataclass(frozen=True, eq=False)
class SensorLog:
    """What one device's sensor has recorded, in order of time."""

    x: NDArray[Any]
    """(n, height, width, channels), as in `Samples`."""
    y: NDArray[np.int64]
    """(n,)"""
    seconds: NDArray[np.float64]
    """(n,): when."""
    positions: Indices
    """(n,): where in the data set each sample comes from."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.y)

    def until(self, at: float) -> SensorLog:
        """What it has recorded by that instant, itself included."""
        end = int(np.searchsorted(self.seconds, at, side="right"))
        return SensorLog(self.x[:end], self.y[:end], self.seconds[:end], self.positions[:end])

    def take(self, chosen: NDArray[np.bool_]) -> SensorLog:
        """Some of its samples; ``chosen`` has shape (n,)."""
        return SensorLog(
            self.x[chosen], self.y[chosen], self.seconds[chosen], self.positions[chosen]
        )


class FleetData:
    """The data of all devices. Made once; a device's log is made whenever it is asked for."""

    def __init__(self, data: Data, seed: int, devices: int, folder: Path = Path()) -> None:
        """Loads the data set; its paths begin in ``folder``.

        Raises: WorldError naming the field, or the data set and what is wrong with it.
        """
        self._data = data
        self._seed = seed
        self._all = data.dataset.load(folder)
        lab, held_out = _split(self._all, data)
        self._lab = np.flatnonzero(lab)
        self._parts = {
            FLEET: np.flatnonzero(~lab & ~held_out),
            HELD_OUT: np.flatnonzero(held_out),
        }
        if not len(self._parts[FLEET]):
            raise WorldError(
                "data: nothing is left for devices; make lab_share or held_out_share smaller"
            )
        self._pools = {purpose: self._pool(part) for purpose, part in self._parts.items()}
        self.devices = devices
        self.held_out_devices = self._held_out_devices()
        self._shares = {FLEET: self._deal(FLEET, devices)}
        self._shares[HELD_OUT] = self._deal(HELD_OUT, self.held_out_devices)

    @property
    def lab(self) -> Samples:
        """What the lab has, as its sensor sees it. Raises WorldError where it has nothing."""
        if not len(self._lab):
            raise WorldError("data.lab_share: the lab has no samples; say which share it has")
        return self._all.take(self._lab)

    @property
    def fleet_pool(self) -> Samples:
        """All samples that devices of the fleet may have, as the lab's sensor would see them."""
        return self._all.take(self._parts[FLEET])

    @property
    def digest(self) -> str:
        """Of the whole data set, as `Samples.digest`: another one makes another experiment."""
        return self._all.digest

    @property
    def classes(self) -> int:
        """Labels are 0 … so many - 1."""
        return int(self._all.y.max()) + 1

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self._all.x.shape[1:]
        return height, width, channels

    def log(self, device: int) -> SensorLog:
        """What the fleet's device of that number, from 0, has recorded in the end."""
        log = self._log(FLEET, device, self.devices)
        return log.take(~self._unseen(device, len(log)))

    def unseen_log(self, device: int) -> SensorLog:
        """What its sensor has seen that it never records (`Data.unseen_share`)."""
        log = self._log(FLEET, device, self.devices)
        return log.take(self._unseen(device, len(log)))

    def _unseen(self, device: int, samples: int) -> NDArray[np.bool_]:
        """Which of so many samples these are; shape (samples,)."""
        count = round(self._data.unseen_share * samples)
        chosen = np.zeros(samples, np.bool_)
        if count:
            random = generator(self._seed, f"{FLEET}/unseen", device)
            chosen[random.permutation(samples)[:count]] = True
        return chosen

    def held_out_log(self, device: int) -> SensorLog:
        """The same of a device that never trains, 0 … `held_out_devices` - 1."""
        return self._log(HELD_OUT, device, self.held_out_devices)

    def _pool(self, part: Indices) -> Pool:
        subjects = self._all.subjects
        return Pool(self._all.y[part], None if subjects is None else subjects[part])

    def _held_out_devices(self) -> int:
        pool = self._pools[HELD_OUT]
        if not len(pool.labels):
            if self._data.held_out_devices:
                raise WorldError("data.held_out_devices: nothing is held out; set held_out_share")
            return 0
        subjects = 1 if pool.subjects is None else len(np.unique(pool.subjects))
        return self._data.held_out_devices or subjects

    def _deal(self, purpose: str, devices: int) -> list[Indices] | None:
        if self._data.samples_per_device is not None or not devices:
            return None
        pool = self._pools[purpose]
        # Whoever never trains scores with all that it has.
        least = self._data.min_samples if purpose == FLEET else 1
        check_enough(len(pool.labels), devices, least)
        shares = self._data.partition.deal(pool, self._seed, purpose, devices)
        return self._data.partition.filled(shares, least, self._seed, purpose)

    def _chosen(self, purpose: str, device: int) -> Indices:
        shares = self._shares[purpose]
        if shares is not None:
            return shares[device]
        assert self._data.samples_per_device is not None
        count = round(
            drawn(self._data.samples_per_device, generator(self._seed, f"{purpose}/count", device))
        )
        return self._data.partition.draw(self._pools[purpose], self._seed, purpose, device, count)

    def _log(self, purpose: str, device: int, devices: int) -> SensorLog:
        if not 0 <= device < devices:
            raise IndexError(f"device {device} of {devices} with {purpose}")
        chosen = self._parts[purpose][self._chosen(purpose, device)]
        random = generator(self._seed, f"{purpose}/order", device)
        chosen = np.sort(chosen) if self._data.order == "recorded" else random.permutation(chosen)
        span = self._data.recorded_over_hours * HOUR_SECONDS
        seconds = np.sort(random.uniform(0.0, span, len(chosen)))
        y = self._all.y[chosen]
        if has(self._data.shuffled_labels, self._seed, f"{purpose}/shuffled", device):
            y = generator(self._seed, f"{purpose}/labels", device).permutation(y)
        x = self._seen(self._all.x[chosen], seconds, purpose, device)
        return SensorLog(self._held(x, seconds, purpose, device), y, seconds, chosen)

    def _seen(
        self, x: NDArray[Any], seconds: NDArray[np.float64], purpose: str, device: int
    ) -> NDArray[Any]:
        sensor = self._data.sensor
        if sensor is None:
            return x
        low, high = self._all.scale
        if not low < high:
            raise WorldError(
                f"data.sensor: all values are {low:g}, so that nobody knows the sensor's range; "
                "give the data set a full_scale"
            )
        real = ((x.astype(np.float32) - low) / (high - low)).astype(np.float32)
        # Devices that never train have sensors of their own.
        number = device if purpose == FLEET else -1 - device
        try:
            seen = sensor.seen(real, seconds, self._seed, number) * (high - low) + low
        except ValueError as error:
            raise WorldError(f"data.{error}") from None
        return np.rint(seen).astype(np.int8) if x.dtype == np.int8 else seen.astype(np.float32)

    def _held(
        self, x: NDArray[Any], seconds: NDArray[np.float64], purpose: str, device: int
    ) -> NDArray[Any]:
        """The samples, where a sensor that is stuck gives its last one again."""
        stuck = self._data.stuck
        if not len(x) or not has(stuck.share, self._seed, f"{purpose}/stuck", device):
            return x
        hours = drawn(stuck.after_hours, generator(self._seed, f"{purpose}/stuck since", device))
        first = int(np.searchsorted(seconds, hours * HOUR_SECONDS))
        x = x.copy()
        x[first:] = x[max(first - 1, 0)]
        return x


def _split(samples: Samples, data: Data) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (n,) of what the lab has and of what is held out."""
    nothing = np.zeros(len(samples), np.bool_)
    held_out = nothing
    if data.held_out_share is None and samples.held_out is not None:
        held_out = samples.held_out
    if data.lab_share is None:
        lab = nothing if samples.lab is None else samples.lab
    else:
        lab = _part(samples, ~held_out, data.lab_share, data.split_seed, "lab")
    if data.held_out_share is not None:
        held_out = _part(samples, ~lab, data.held_out_share, data.split_seed, "held out")
    return lab, held_out & ~lab


def _part(
    samples: Samples, among: NDArray[np.bool_], share: float, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """A share of the samples where ``among`` is true: of the subjects, whole, where known."""
    owners = np.arange(len(samples)) if samples.subjects is None else samples.subjects
    present = np.unique(owners[among])
    count = max(round(share * len(present)), 1)
    chosen = generator(seed, purpose).permutation(present)[:count]
    part: NDArray[np.bool_] = among & np.isin(owners, chosen)
    return part
