"""The devices of a world, made wherever they are to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.bundle import Bundle, load_bundle
from simulator.devices.flash_image import held_out_mask
from simulator.machines.device_spec import DeviceSpec
from simulator.virtual.costs import WorkCosts
from simulator.virtual.events import Event, Recording, events_of
from simulator.virtual.line import LEAST_NANOSECONDS, LineEnd
from simulator.virtual.power import Power
from simulator.world.data import SensorLog
from simulator.world.draws import generator
from simulator.world.links import Direction
from simulator.world.world import World, WorldConfig


@dataclass(frozen=True)
class Firmware:
    """What runs on the devices of one board."""

    bundle: Path
    library: Path
    """The bundle as host library."""
    costs: WorkCosts


@dataclass(frozen=True)
class Provisioned:
    """What devices have been given of keys; without it they take unsigned tasks."""

    authority: bytes
    """Public key of the fleet's authority."""
    keyring: bytes
    """A signed one."""
    keys: Mapping[int, bytes]
    """Each device's own, by its number, as its identity region has them."""


@dataclass(frozen=True, eq=False)
class HeldSamples:
    """Samples on which somebody is scored."""

    codes: NDArray[np.int8]
    """(n, …)"""
    labels: NDArray[np.int64]
    """(n,)"""


@dataclass(frozen=True, eq=False)
class Newcomer:
    """A device that joins when all is learnt."""

    trained: HeldSamples
    held_out: HeldSamples
    scored: HeldSamples


@dataclass
class Population:
    """All devices of a world. It is small on its way to another process."""

    config: WorldConfig
    seed: int
    folder: Path
    """Where paths in the description begin."""
    firmware: Mapping[str, Firmware]
    """By board."""
    fleet: str = "experiment"
    provisioned: Provisioned | None = None
    _bundles: dict[str, Bundle] = field(default_factory=dict, init=False, repr=False)
    _held_out: dict[int, HeldSamples] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what is made of it where it is needed."""
        made_of = (self.config, self.seed, self.folder, self.firmware, self.fleet)
        return type(self), (*made_of, self.provisioned)

    @cached_property
    def world(self) -> World:
        """The description with its seed."""
        return World(self.config, self.seed, self.folder)

    @property
    def numbers(self) -> range:
        """Of the devices."""
        return self.world.devices

    def bundle(self, board: str) -> Bundle:
        """The bundle of a board."""
        if board not in self._bundles:
            self._bundles[board] = load_bundle(self.firmware[board].bundle)
        return self._bundles[board]

    def costs(self, number: int) -> WorkCosts:
        """What work takes on a device, however slow it is."""
        facts = self.world.device(number)
        return self.firmware[facts.board].costs.slower(
            facts.slower * self.config.population.clocks_per_instruction
        )

    def spec(self, number: int) -> DeviceSpec:
        """Who the device is, with what it has recorded in the beginning."""
        facts = self.world.device(number)
        log = self.world.data.log(number).until(0.0)
        given = self.provisioned
        return DeviceSpec(
            device=facts.name,
            bundle=self.firmware[facts.board].bundle,
            password="virtual",  # nobody checks it, but a device has one
            samples=self._codes(facts.board, log),
            labels=log.y,
            fleet=self.fleet,
            machine="host",
            reserved_sram_bytes=facts.reserved_sram_bytes,
            link_bits_per_second=min(int(8 * self.world.link(number).up_bytes_per_second), 2**31),
            seed=int(generator(self.seed, "device entropy", number).integers(2**32)),
            keys=given.keys[number] if given else None,
            authority=given.authority if given else None,
            keyring=given.keyring if given else None,
        )

    def events(self, number: int) -> Iterator[Event]:
        """What befalls the device."""
        facts = self.world.device(number)
        log = self.world.data.log(number)
        first = len(log.until(0.0))
        codes = self._codes(facts.board, log)[first:]
        return events_of(self.world, number, Recording(codes, log.y[first:], log.seconds[first:]))

    def line(self, number: int, direction: Direction, call: int) -> LineEnd:
        """One direction of one of its connections."""
        return LineEnd(self.world.stream(number, direction, call))

    @property
    def least_line_nanoseconds(self) -> int:
        """No line of the world is faster."""
        classes = self.config.links.values()
        seconds = min(one.latency_seconds[0] for one in classes)
        return max(LEAST_NANOSECONDS, int(seconds * 1_000_000_000))

    def power(self, number: int) -> Power:
        """What feeds it."""
        world = self.world
        return Power(world.meter(number), world.battery(number), world.charging(number))

    def held_out_of_device(self, number: int) -> HeldSamples:
        """What the device is scored on: what it never records, where the world has such samples;
        else what it scores itself on, every third of all that it records."""
        if number not in self._held_out and self.config.data.unseen_share:
            log = self.world.data.unseen_log(number)
            codes = self._codes(self.world.device(number).board, log)
            self._held_out[number] = HeldSamples(codes, log.y)
        if number not in self._held_out:
            codes, labels = self._recorded(number)
            held_out = held_out_mask(len(labels))
            # Asked for again and again: whoever sees samples through a sensor waits for it.
            self._held_out[number] = HeldSamples(codes[held_out].copy(), labels[held_out])
        return self._held_out[number]

    def trained_by_device(self, number: int) -> HeldSamples:
        """The others."""
        codes, labels = self._recorded(number)
        trained = ~held_out_mask(len(labels))
        return HeldSamples(codes[trained], labels[trained])

    def _recorded(self, number: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        log = self.world.data.log(number)
        return self._codes(self.world.device(number).board, log), log.y

    def never_trained(self) -> list[HeldSamples]:
        """All samples of each device that never trains."""
        data = self.world.data
        board = next(iter(self.firmware))
        logs = [data.held_out_log(number) for number in range(data.held_out_devices)]
        return [HeldSamples(self._codes(board, log), log.y) for log in logs]

    def newcomers(self) -> list[Newcomer]:
        """The same devices, if they joined: what they would train on, choose by, be scored on."""
        found = []
        for number, held in enumerate(self.never_trained()):
            count = len(held.labels)
            order = generator(self.seed, "newcomer", number).permutation(count)
            unseen = order[: round(self.config.data.unseen_share * count)]
            rest = np.setdiff1d(order, unseen)
            held_out = held_out_mask(len(rest))
            parts = [rest[~held_out], rest[held_out], unseen if len(unseen) else rest[held_out]]
            found.append(Newcomer(*(HeldSamples(held.codes[p], held.labels[p]) for p in parts)))
        return found

    def _codes(self, board: str, log: SensorLog) -> NDArray[np.int8]:
        return self.bundle(board).manifest.model.input.codes(log.x)
