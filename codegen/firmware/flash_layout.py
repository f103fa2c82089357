"""Where in flash firmware, identity, journal, weights slots and sample log lie.

docs/specification/flash.md says what the regions are for. All are whole sectors. The firmware is in
two pieces: the boot sector, and what remains between identity and journal, which follow that
sector, and the slots and the log, which are handed out from the end of the internal flash
downwards. What doesn't fit there lies in the board's external flash, if it has one, from its start
upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Literal

from codegen.errors import BudgetError
from codegen.firmware.boards import Board, FlashName

_SLOT_FIELDS_BYTES, _MARK_BYTES, _CHUNK_BYTES, _SLOT_HEADER_UNIT = 128, 4, 512, 4096

Keep = Literal["newest", "reservoir"]
"""Which samples stay when the log has no room for more."""

SAMPLE_LOG_BYTES = 64 * 1024
"""Least size of the sample log."""
WANTED_SAMPLES, LEAST_SAMPLES = 64, 3
"""Samples that there should be, and must be, room for. One in three only scores."""
LARGEST_SAMPLE_BYTES = 0xFFFFF
"""The length of a record has 20 bits (docs/specification/flash.md)."""
UNIT_HEADER_BYTES = 32
"""Of a unit of the sample log."""
_RECORD_HEADER_BYTES = 16
_LOG_PLACES = 65536

PERSONAL_HEADER_BYTES = 128
"""Of a unit of the personal region before the values."""

_SMALL = ("identity", "journal")
_SLOTS = ("slot_a", "slot_b")
_LOG = "samples"
_PERSONAL = "personal"
_OUTSIDE: tuple[tuple[str, ...], ...] = (
    (),
    (_LOG,),
    _SLOTS,
    (*_SLOTS, _LOG),
    (*_SLOTS, _LOG, *_SMALL),
)
"""Regions in the external flash: the first choice that fits is taken."""
_JOURNAL_UNITS = _PERSONAL_UNITS = 2
KEEP_NUMBERS: dict[Keep, int] = {"newest": 0, "reservoir": 1}
"""tf_sample_keep of device_runtime/include/tinyfleet/sample_log.h."""


@dataclass(frozen=True)
class Region:
    """A run of whole sectors: address and size in bytes, first sector and number of them.

    Sectors are numbered through all flashes of the board, the internal one first.
    """

    flash: FlashName
    address: int
    bytes: int
    first_sector: int
    sector_count: int


@dataclass(frozen=True)
class SampleRegion(Region):
    """The sample log, divided into units of one size; a single one fills and that's it."""

    units: int


@dataclass(frozen=True)
class FlashLayout:
    """The regions of a board's flash. ``firmware`` goes on where ``boot`` ends."""

    boot: Region
    identity: Region
    journal: Region
    firmware: Region
    slot_a: Region
    slot_b: Region
    samples: SampleRegion
    personal: Region | None = None
    """Two units of one size; None where no plan has personal tensors."""

    @property
    def stores(self) -> dict[str, Region]:
        """The regions that the firmware reads or writes, by name."""
        return {
            "identity": self.identity,
            "journal": self.journal,
            "slot_a": self.slot_a,
            "slot_b": self.slot_b,
            "samples": self.samples,
            **({} if self.personal is None else {_PERSONAL: self.personal}),
        }

    @property
    def uses_external_flash(self) -> bool:
        """Whether a region lies outside the microcontroller."""
        return any(region.flash == "external" for region in self.stores.values())


@dataclass(frozen=True)
class LogNeeds:
    """What the sample log has to hold: samples of one size, in so many bytes of flash at least."""

    sample_bytes: int
    samples: int
    bytes: int

    def capacity(self, unit_bytes: int, units: int) -> int:
        """Samples that are there at any time: while one of several units is erased, the others."""
        place = record_alignment(unit_bytes * units)
        first = -(-UNIT_HEADER_BYTES // place) * place
        record = -(-(_RECORD_HEADER_BYTES + self.sample_bytes) // place) * place
        # The last place of a unit stays free.
        return max(units - 1, 1) * max(0, (unit_bytes - first - place) // record)

    def fit(self, unit_bytes: int, units: int) -> bool:
        """Whether a log of this size does."""
        return unit_bytes * units >= self.bytes and self.capacity(unit_bytes, units) >= self.samples


def slot_header_bytes(weights_bytes: int) -> int:
    """Of a weights slot before the payload: header and one mark for each chunk (flash.md)."""
    marks = _MARK_BYTES * -(-weights_bytes // _CHUNK_BYTES)
    return -(-(_SLOT_FIELDS_BYTES + marks) // _SLOT_HEADER_UNIT) * _SLOT_HEADER_UNIT


def record_alignment(log_bytes: int) -> int:
    """A place of a sample log of this size: what offsets of records are multiples of (flash.md)."""
    place = 4
    while place * _LOG_PLACES < log_bytes:
        place *= 2
    return place


def sample_log_needs(sample_bytes: int, log_bytes: int | None = None) -> tuple[LogNeeds, ...]:
    """What is wanted of the log for samples of ``sample_bytes`` each, and what does if need be.

    ``log_bytes`` is the least size that somebody asks for.
    Raises BudgetError for samples that no record holds.
    """
    if sample_bytes > LARGEST_SAMPLE_BYTES:
        raise BudgetError(
            f"a sample of {sample_bytes:,} bytes is more than the {LARGEST_SAMPLE_BYTES:,} that a "
            "record of the sample log holds; use a smaller input"
        )
    if log_bytes is not None:
        return (LogNeeds(sample_bytes, LEAST_SAMPLES, log_bytes),)
    return tuple(
        LogNeeds(sample_bytes, samples, SAMPLE_LOG_BYTES)
        for samples in (WANTED_SAMPLES, LEAST_SAMPLES)
    )


def plan_flash(
    board: Board,
    firmware_bytes: int,
    weights_bytes: int,
    log: Sequence[LogNeeds],
    personal_bytes: int = 0,
    *,
    linked: bool = True,
) -> FlashLayout:
    """Lays out the flash of ``board``.

    ``firmware_bytes`` is all that the image occupies in flash behind the boot sector (with the
    weights that are built in), ``weights_bytes`` the blob that a slot must hold, ``log`` what is
    wanted of the sample log; where there is no room for the first, the next does.
    ``personal_bytes`` is what a device keeps of tensors of its own, 0 where no plan has any.
    ``linked``: whether the size of the code is known and part of ``firmware_bytes``.
    Raises BudgetError with the table of needs if they don't fit.
    """
    slot_bytes = slot_header_bytes(weights_bytes) + weights_bytes
    unit_bytes = PERSONAL_HEADER_BYTES + personal_bytes if personal_bytes else 0
    left_for_firmware: int | None = None
    for needs in log:
        for outside in _choices(board, personal=unit_bytes > 0):
            for ring in (True, False):
                layout = _Placing(board, slot_bytes, unit_bytes, needs, outside, ring).layout()
                if layout is None:
                    continue
                if layout.firmware.bytes >= firmware_bytes:
                    return layout
                left_for_firmware = max(left_for_firmware or 0, layout.firmware.bytes)
    firmware = (
        "firmware with factory weights" if linked else "factory weights, without code",
        firmware_bytes,
    )
    raise _too_small(board, firmware, slot_bytes, unit_bytes, log[-1], left_for_firmware)


def layout_without_stores(board: Board) -> FlashLayout:
    """A firmware region of no bytes, and stores that are nowhere: by what an image overflows it
    is what the image takes behind the boot sector."""
    first = Region("internal", board.flash.sector_address(1), 0, 1, 0)
    boot = Region("internal", board.flash.address, board.flash.sectors[0], 0, 1)
    nowhere = Region("internal" if board.external_flash is None else "external", 0, 0, 0, 0)
    log = _in_units(nowhere, 1)
    return FlashLayout(boot, nowhere, nowhere, first, nowhere, nowhere, log)


def _choices(board: Board, personal: bool) -> list[tuple[str, ...]]:
    """Which regions may lie in the external flash, in the order in which that is tried."""
    if board.external_flash is None:
        return [()]
    if not personal:
        return list(_OUTSIDE)
    return [(), *((*outside, _PERSONAL) for outside in _OUTSIDE)]


class _NoRoom(Exception):
    """A region doesn't fit where it should go."""


class _Placing:
    """One way to lay out a flash: which regions are outside, and whether the log is a ring."""

    def __init__(
        self,
        board: Board,
        slot_bytes: int,
        personal_bytes: int,
        log: LogNeeds,
        outside: Sequence[str],
        ring: bool,
    ) -> None:
        self._board = board
        self._slot_bytes = slot_bytes
        self._personal_bytes = personal_bytes  # of a unit
        self._log = log
        self._outside = outside
        self._ring = ring
        self._inside = board.flash.sectors
        self._first, self._end = 1, len(board.flash.sectors)  # free sectors of the internal flash
        self._free = 0  # first free sector of the external flash

    def layout(self) -> FlashLayout | None:
        """None where there is no room."""
        try:
            return self._layout()
        except _NoRoom:
            return None

    def _layout(self) -> FlashLayout:
        external = {name: self._place_outside(name) for name in self._outside}
        identity = external.get("identity") or self._take_first(1, 1)
        journal = external.get("journal") or self._take_journal()
        samples = external.get(_LOG) or self._take_log()
        slot_b = external.get("slot_b") or self._take_last(self._slot_bytes)
        slot_a = external.get("slot_a") or self._take_last(self._slot_bytes)
        personal = external.get(_PERSONAL) or self._take_personal()
        if self._first >= self._end:
            raise _NoRoom
        firmware = self._region_inside(self._first, self._end - self._first)
        assert isinstance(samples, SampleRegion)
        boot = self._region_inside(0, 1)
        return FlashLayout(boot, identity, journal, firmware, slot_a, slot_b, samples, personal)

    def _region_inside(self, first: int, count: int) -> Region:
        size = sum(self._inside[first : first + count])
        return Region("internal", self._board.flash.sector_address(first), size, first, count)

    def _take_first(self, first: int, count: int) -> Region:
        """Sectors at the beginning of the free ones, perhaps behind some that stay unused."""
        if first + count > self._end:
            raise _NoRoom
        self._first = first + count
        return self._region_inside(first, count)

    def _take_journal(self) -> Region:
        """The first two neighbours of one size."""
        for first in range(self._first, self._end - 1):
            if self._inside[first] == self._inside[first + 1]:
                return self._take_first(first, _JOURNAL_UNITS)
        raise _NoRoom

    def _take_last(self, size: int) -> Region:
        """Sectors of at least ``size`` bytes, and one at least, at the end of the free ones."""
        first = self._end
        taken = 0
        while taken < max(size, 1) and first > self._first:
            first -= 1
            taken += self._inside[first]
        if taken < max(size, 1):
            raise _NoRoom
        region = self._region_inside(first, self._end - first)
        self._end = first
        return region

    def _take_personal(self) -> Region | None:
        """Two units of one size, of as many sectors as one takes."""
        if not self._personal_bytes:
            return None
        if self._first >= self._end:
            raise _NoRoom
        sector = self._inside[self._end - 1]
        count = _PERSONAL_UNITS * -(-self._personal_bytes // sector)
        first = self._end - count
        if first < self._first or any(of != sector for of in self._inside[first : self._end]):
            raise _NoRoom
        return self._take_last(count * sector)

    def _take_log(self) -> Region:
        if not self._ring:
            first = self._end - 1
            while first >= self._first and not self._log.fit(
                sum(self._inside[first : self._end]), 1
            ):
                first -= 1
            if first < self._first:
                raise _NoRoom
            return _in_units(self._take_last(sum(self._inside[first : self._end])), 1)
        of_one_size = 0
        while (
            self._end - of_one_size > self._first
            and self._inside[self._end - 1 - of_one_size] == self._inside[self._end - 1]
        ):
            of_one_size += 1
        if of_one_size == 0:
            raise _NoRoom
        sector = self._inside[self._end - 1]
        per_unit, units = self._ring_of(sector, of_one_size)
        return _in_units(self._take_last(sector * per_unit * units), units)

    def _ring_of(self, sector_bytes: int, sectors: int) -> tuple[int, int]:
        """Sectors of a unit, and units, of the smallest ring in so many sectors of one size."""
        per_unit = 1
        while self._log.capacity(per_unit * sector_bytes, 2) == 0:
            per_unit += 1
            if per_unit * 2 > sectors:
                raise _NoRoom
        for units in range(2, sectors // per_unit + 1):
            if self._log.fit(per_unit * sector_bytes, units):
                return per_unit, units
        raise _NoRoom

    def _place_outside(self, name: str) -> Region:
        flash = self._board.external_flash
        assert flash is not None
        units = 1
        if name == "identity":
            count = 1
        elif name == "journal":
            count = _JOURNAL_UNITS
        elif name == _PERSONAL:
            count = _PERSONAL_UNITS * -(-self._personal_bytes // flash.sector_bytes)
        elif name in _SLOTS:
            count = max(1, -(-self._slot_bytes // flash.sector_bytes))
        elif self._ring:
            count, units = self._ring_of(flash.sector_bytes, flash.sector_count - self._free)
            count *= units
        else:
            count = 1
            while count <= flash.sector_count and not self._log.fit(count * flash.sector_bytes, 1):
                count += 1
        if self._free + count > flash.sector_count:
            raise _NoRoom
        region = Region(
            "external",
            flash.address + self._free * flash.sector_bytes,
            count * flash.sector_bytes,
            len(self._inside) + self._free,
            count,
        )
        self._free += count
        return _in_units(region, units) if name == _LOG else region


def _in_units(region: Region, units: int) -> SampleRegion:
    return SampleRegion(
        region.flash,
        region.address,
        region.bytes,
        region.first_sector,
        region.sector_count,
        units,
    )


def layout_defines(board: Board, layout: FlashLayout) -> dict[str, str | int]:
    """What is defined for the compiler where ``layout`` uses the external flash (boards.md)."""
    flash = board.external_flash
    if flash is None or not layout.uses_external_flash:
        return {}
    return {
        "TF_EXTERNAL_FLASH": 1,
        "TF_EXTERNAL_FLASH_ADDRESS": f"{flash.address:#x}u",
        "TF_EXTERNAL_FLASH_BYTES": f"{flash.bytes}u",
        "TF_EXTERNAL_FLASH_SECTOR_BYTES": f"{flash.sector_bytes}u",
        "TF_EXTERNAL_FLASH_ID": f"{flash.id:#x}u",
    }


def linker_script(
    board: Board,
    layout: FlashLayout,
    keep: Keep = "newest",
    boot_functions: Sequence[str] = (),
) -> str:
    """The linker script for ``board``, with the symbols that boards.md lists.

    ``keep`` says which samples stay in a full log, ``boot_functions`` what lies in the boot sector
    besides the vectors.
    """
    symbols: list[str] = []
    nowhere = Region("internal", 0, 0, 0, 0)
    for name, region in {_PERSONAL: nowhere, **layout.stores}.items():
        symbols += [
            f"__{name}_start = {region.address:#010x};",
            f"__{name}_bytes = {region.bytes};",
            f"__{name}_sector = {region.first_sector};",
            f"__{name}_sector_count = {region.sector_count};",
        ]
    symbols += [
        f"__slot_bytes = {min(layout.slot_a.bytes, layout.slot_b.bytes)};",
        f"__samples_units = {layout.samples.units};",
        f"__samples_keep = {KEEP_NUMBERS[keep]};",
    ]
    text = (resources.files("codegen.firmware") / "firmware.ld.template").read_text("utf-8")
    return Template(text).substitute(
        board=board.name,
        boot_address=f"{layout.boot.address:#010x}",
        boot_bytes=layout.boot.bytes,
        boot_functions="\n".join(f"    *(.text.{name})" for name in boot_functions),
        firmware_address=f"{layout.firmware.address:#010x}",
        firmware_bytes=layout.firmware.bytes,
        sram_address=f"{board.sram.address:#010x}",
        sram_limit_bytes=board.sram_limit_bytes,
        stack_bytes=board.stack_bytes,
        flash_symbols="\n".join(symbols),
    )


def _too_small(
    board: Board,
    firmware: tuple[str, int],
    slot_bytes: int,
    personal_bytes: int,
    log: LogNeeds,
    app: int | None,
) -> BudgetError:
    record = _RECORD_HEADER_BYTES + log.sample_bytes
    small = sum(board.flash.sectors[: 2 + _JOURNAL_UNITS])
    rows = [
        firmware,
        ("boot, identity, journal", small),
        ("weights slot A", slot_bytes),
        ("weights slot B", slot_bytes),
        ("sample log", max(log.bytes, log.samples * record)),
    ]
    if personal_bytes:
        rows.append(("personal tensors", _PERSONAL_UNITS * personal_bytes))
    lines = [f"  {name:<30} {size:>10,} bytes" for name, size in rows]
    lines.append(f"  {'needed (before whole sectors)':<30} {sum(s for _, s in rows):>10,} bytes")
    lines.append(f"  {'flash of ' + board.name:<30} {board.flash.bytes:>10,} bytes")
    if board.external_flash is not None:
        lines.append(f"  {'external flash':<30} {board.external_flash.bytes:>10,} bytes")
    if app is not None:
        lines.append(f"  {'left for the firmware':<30} {app:>10,} bytes")
    sizes = ", ".join(f"{size // 1024} KiB" for size in board.flash.sectors)
    remedy = (
        "a smaller sample log, or a board with more flash or with an external one "
        '("external_flash" in its description: docs/howto/add-a-board.md)'
        if board.external_flash is None
        else "a smaller sample log, or a board with more flash (the firmware itself lies in the "
        "internal one)"
    )
    return BudgetError(
        f"the model doesn't fit the flash of {board.name} "
        "(boot, identity, journal, slots and log take whole sectors of "
        f"{sizes}):\n" + "\n".join(lines) + f"\nUse a smaller model, {remedy}."
    )
