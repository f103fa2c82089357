"""A world as data: what a `world:` section of an experiment's file says, and what follows from it.

`WorldConfig` is the description; docs/specification/world.md says what its fields mean. `World` is
the description with a seed: facts about each device, the same whoever asks first, and for all but
the dealing of samples whatever the number of devices.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from codegen.firmware.boards import Board, load_board
from simulator.errors import WorldError
from simulator.world.availability import Always, Availability, Intervals, WhileCharging
from simulator.world.data import Data, FleetData
from simulator.world.energy import (
    Battery,
    Energy,
    EnergyMeter,
    FlashWear,
    battery_of,
    meter_of,
)
from simulator.world.faults import Fault, Faults, clock_rate, faults_of, is_malicious, poisoned
from simulator.world.fields import Section, problem
from simulator.world.links import (
    Direction,
    Link,
    LinkClass,
    LinkClasses,
    Stream,
    link_of,
    outages,
)
from simulator.world.population import DeviceFacts, Population, device_facts


class WorldConfig(Section):
    """All that a world is made of, but chance."""

    population: Population
    data: Data
    availability: Availability = Always()
    links: LinkClasses = Field(default={"serial": LinkClass()})
    faults: Faults = Faults()
    energy: Energy = Energy()

    @model_validator(mode="after")
    def _what_batteries_need_is_known(self) -> Self:
        if isinstance(self.availability, WhileCharging) and self.energy.charging is None:
            raise ValueError(
                "availability.kind: charging, but nobody says when; write energy.charging"
            )
        if self.energy.battery_milliwatt_hours is not None:
            for board in map(load_board, self.population.boards):
                if self.energy.power(board) is None:
                    raise ValueError(
                        f"energy.active_milliwatts: there are batteries, but nobody says what "
                        f"{board.name} takes while it computes; write {{{board.name}: …}}"
                    )
        return self

    @classmethod
    def parse(cls, text: str | bytes) -> WorldConfig:
        """The description in a YAML text (JSON is YAML). Raises: WorldError naming the field."""
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise WorldError(f"world: not YAML ({error})") from None
        except ValidationError as error:
            raise WorldError(f"world: {problem(error, cls)}") from None


class World:
    """A description with a seed. Devices have the numbers from 0."""

    def __init__(self, config: WorldConfig, seed: int, folder: Path = Path()) -> None:
        """Paths in the description begin in ``folder``.

        Raises: WorldError naming a file that is missing or wrong.
        """
        self.config = config
        self.seed = seed
        self._folder = folder
        self._boards = {name: load_board(name) for name in config.population.boards}
        budget = config.energy.erase_budget
        self._wear = {name: FlashWear(board, budget) for name, board in self._boards.items()}
        self._intervals = config.availability.of_fleet(seed, self.charging, folder)
        # What is asked for again and again, at each connection for example.
        self._devices: dict[int, DeviceFacts] = {}
        self._links: dict[int, Link] = {}

    def __reduce__(self) -> tuple[type[World], tuple[WorldConfig, int, Path]]:
        """Other processes make it anew: all of it follows from these."""
        return World, (self.config, self.seed, self._folder)

    @property
    def devices(self) -> range:
        """Their numbers."""
        return range(self.config.population.devices)

    def device(self, number: int) -> DeviceFacts:
        """What the device is."""
        if number not in self._devices:
            population = self.config.population
            self._devices[number] = device_facts(population, self._boards, self.seed, number)
        return self._devices[number]

    def board(self, number: int) -> Board:
        """The device's board."""
        return self._boards[self.device(number).board]

    @cached_property
    def data(self) -> FleetData:
        """What devices record. Raises: WorldError as `FleetData`."""
        return FleetData(self.config.data, self.seed, len(self.devices), self._folder)

    def availability(self, number: int) -> Intervals:
        """When the device is there; for `is_there` and `next_change`."""
        return self._intervals(number)

    def charging(self, number: int) -> Intervals:
        """When something feeds the device."""
        return self.config.energy.charging_of(self.seed, number)

    def link(self, number: int) -> Link:
        """How the device is connected."""
        if number not in self._links:
            self._links[number] = link_of(self.config.links, self.seed, number)
        return self._links[number]

    def outages(self, number: int) -> Intervals:
        """When the device's connection is broken; for `is_there` and `next_change`."""
        link = self.link(number)
        return lambda since: outages(link, self.seed, number, since)

    def stream(self, number: int, direction: Direction, connection: int = 0) -> Stream:
        """One direction of the device's connection, of which the first has the number 0."""
        return Stream(self.link(number), self.seed, number, direction, connection)

    def faults(self, number: int, until: float, since: float = 0.0) -> list[Fault]:
        """What goes wrong with the device in [since, until), in order."""
        return faults_of(self.config.faults, self.board(number), self.seed, number, until, since)

    def clock_rate(self, number: int) -> float:
        """Seconds that the device's clock goes in a second of the world's."""
        return clock_rate(self.config.faults, self.seed, number)

    def is_malicious(self, number: int) -> bool:
        """Whether the device's deltas lie."""
        return is_malicious(self.config.faults, self.seed, number)

    def poisoned(self, number: int, values: NDArray[Any], task: int) -> NDArray[Any]:
        """The delta that the device sends for ``values``; ``task`` numbers what it answers."""
        return poisoned(self.config.faults, values, self.seed, number, task)

    def meter(self, number: int) -> EnergyMeter | None:
        """Counts the device's energy; None where nobody says what its board takes."""
        return meter_of(
            self.config.energy,
            self.board(number),
            self.link(number),
            self.config.population.clocks_per_instruction,
        )

    def battery(self, number: int) -> Battery | None:
        """The device's battery at 0 seconds; None where something feeds it always."""
        return battery_of(self.config.energy, self.seed, number)

    def flash_wear(self, number: int) -> FlashWear:
        """What the device's sectors stand."""
        return self._wear[self.device(number).board]
