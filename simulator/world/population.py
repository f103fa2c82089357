"""Which devices there are: boards, free SRAM, sites with their gateways, and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from codegen.errors import BoardError
from codegen.firmware.boards import Board, load_board
from simulator.world.draws import generator
from simulator.world.fields import (
    Name,
    PositiveRange,
    Range,
    Section,
    Share,
    add_up_to_one,
    chosen_by_share,
    drawn,
    has,
)


class Site(Section):
    """A place with one broker and some gateways, which share its devices evenly."""

    share: Share = 1.0
    """Of all devices."""
    gateways: Annotated[int, Field(ge=1, le=1000)] = 1


class Stragglers(Section):
    """Devices that compute slower than their board does, as if they had other work.

    FTTE (arXiv 2510.03165) measures with 90 % of them.
    """

    share: Share = 0.0
    slower: Annotated[Range, Field(validate_default=True)] = (2.0, 8.0)
    """So many times."""

    @field_validator("slower")
    @classmethod
    def _is_slower(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] < 1.0:
            raise ValueError(f"begins at {ends[0]:g}; 1 is as fast as the board, give no less")
        return ends


class Population(Section):
    """The fleet's devices, numbered from 0."""

    devices: Annotated[int, Field(ge=1, le=10_000_000)]
    boards: Annotated[Mapping[str, Share], Field(min_length=1)]
    """Share of each board, by its name in codegen or the path of its .json file."""
    reserved_sram_bytes: PositiveRange = (0.0, 0.0)
    """What a device's application keeps of the board's SRAM; training has the rest."""
    reserved_sram_shares: Mapping[Annotated[int, Field(strict=False, ge=0)], Share] = {}
    """Instead of a range: so many bytes on such a share of the devices."""
    sites: Annotated[Mapping[Name, Site], Field(min_length=1)] = {"site": Site()}
    stragglers: Stragglers = Stragglers()
    clocks_per_instruction: Annotated[float, Field(gt=0.0, le=100.0)] = 1.5
    """What an instruction takes on average. Emulated boards count one clock for 16 bits of code:
    1 to 2."""

    @field_validator("boards")
    @classmethod
    def _boards_are_known(cls, boards: Mapping[str, float]) -> Mapping[str, float]:
        add_up_to_one(boards)
        for name in boards:
            try:
                load_board(name)
            except BoardError as error:
                raise ValueError(str(error)) from None
        return boards

    @field_validator("sites")
    @classmethod
    def _sites_have_all_devices(cls, sites: Mapping[str, Site]) -> Mapping[str, Site]:
        add_up_to_one({name: site.share for name, site in sites.items()})
        return sites

    @model_validator(mode="after")
    def _something_is_left_for_training(self) -> Self:
        field, most = "reserved_sram_bytes", self.reserved_sram_bytes[1]
        if self.reserved_sram_shares:
            if most > 0.0:
                raise ValueError("reserved_sram_shares: there is a range already; leave one out")
            field, most = "reserved_sram_shares", max(self.reserved_sram_shares)
            add_up_to_one(self.reserved_sram_shares)
        smallest = min((load_board(name) for name in self.boards), key=lambda b: b.sram_limit_bytes)
        if most >= smallest.sram_limit_bytes - smallest.stack_bytes:
            raise ValueError(
                f"{field}: {most:g} bytes leave nothing of the {smallest.sram_limit_bytes} of "
                f"{smallest.name}; reserve less"
            )
        return self


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is."""

    number: int
    """From 0."""
    name: str
    board: str
    reserved_sram_bytes: int
    site: str
    gateway: str
    """Its site's name and a number from 1."""
    slower: float
    """So many times the board's own time for the same instructions; 1: no straggler."""
    instructions_per_second: float
    """What it does for training."""


def device_name(number: int) -> str:
    """Name of device ``number``, from 0; in order also as text, up to ten million."""
    return f"device-{number:07d}"


def board_of(population: Population, seed: int, number: int) -> str:
    """Name of the device's board."""
    return chosen_by_share(population.boards, seed, "board", number)


def device_facts(
    population: Population, boards: Mapping[str, Board], seed: int, number: int
) -> DeviceFacts:
    """What device ``number`` is, whatever the number of devices; ``boards`` are all by name."""
    site = chosen_by_share(
        {name: one.share for name, one in population.sites.items()}, seed, "site", number
    )
    random = generator(seed, "device", number)
    reserved = drawn(population.reserved_sram_bytes, random)
    slower = drawn(population.stragglers.slower, random)
    gateway = 1 + int(random.integers(population.sites[site].gateways))
    if not has(population.stragglers.share, seed, "straggler", number):
        slower = 1.0
    board = board_of(population, seed, number)
    own_speed = boards[board].clock_hz / population.clocks_per_instruction
    if population.reserved_sram_shares:
        reserved = chosen_by_share(population.reserved_sram_shares, seed, "reserved SRAM", number)
    return DeviceFacts(
        number=number,
        name=device_name(number),
        board=board,
        reserved_sram_bytes=int(reserved),
        site=site,
        gateway=f"{site}-{gateway}",
        slower=slower,
        instructions_per_second=own_speed / slower,
    )
