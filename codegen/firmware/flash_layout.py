"""Where in flash the firmware, the two weights slots and the sample log lie.

The firmware starts in sector 0 of the microcontroller's own flash. The regions that are erased
while it runs are runs of whole sectors. In the internal flash they are handed out from its end
downwards: sample log last, slot B and slot A below it; what remains belongs to the firmware. What
doesn't fit there lies in the board's external flash, if it has one, from its start upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from codegen.errors import BudgetError
from codegen.firmware.boards import Board, FlashName

_SLOT_FIELDS_BYTES, _MARK_BYTES, _CHUNK_BYTES, _SLOT_HEADER_UNIT = 64, 4, 512, 4096

SAMPLE_LOG_BYTES = 64 * 1024
"""Size of the sample log where that holds enough samples; it has to hold the identity, too."""
WANTED_SAMPLES, LEAST_SAMPLES = 64, 3
"""Samples that there should be, and must be, room for. One in three only scores."""
LARGEST_SAMPLE_BYTES = 0xFFFFF
"""The length of a record has 20 bits (docs/specification/flash.md)."""
_IDENTITY_BYTES = 1024
_RECORD_HEADER_BYTES = 16
_LOG_PLACES = 65536

_SLOTS = ("slot_a", "slot_b")
_LOG = "samples"
_REGIONS = (*_SLOTS, _LOG)
_OUTSIDE: tuple[tuple[str, ...], ...] = ((), (_LOG,), _SLOTS, _REGIONS)
"""Regions in the external flash: the first choice that fits is taken."""


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
class FlashLayout:
    """The four regions of a board's flash."""

    firmware: Region
    slot_a: Region
    slot_b: Region
    samples: Region

    @property
    def uses_external_flash(self) -> bool:
        """Whether a region lies outside the microcontroller."""
        return any(
            region.flash == "external" for region in (self.slot_a, self.slot_b, self.samples)
        )


def slot_header_bytes(weights_bytes: int) -> int:
    """Of a weights slot before the payload: header and one mark for each chunk (flash.md)."""
    marks = _MARK_BYTES * -(-weights_bytes // _CHUNK_BYTES)
    return -(-(_SLOT_FIELDS_BYTES + marks) // _SLOT_HEADER_UNIT) * _SLOT_HEADER_UNIT


def record_alignment(log_bytes: int) -> int:
    """What the offsets of records in a sample log of this size are multiples of (flash.md)."""
    unit = 4
    while unit * _LOG_PLACES < log_bytes:
        unit *= 2
    return unit


def sample_log_sizes(sample_bytes: int) -> tuple[int, int]:
    """Wanted and least size in bytes of the log, for samples of ``sample_bytes`` each.

    Raises BudgetError for samples that no record holds.
    """
    if sample_bytes > LARGEST_SAMPLE_BYTES:
        raise BudgetError(
            f"a sample of {sample_bytes:,} bytes is more than the {LARGEST_SAMPLE_BYTES:,} that a "
            "record of the sample log holds; use a smaller input"
        )

    def room(samples: int) -> int:
        plain = samples * (_RECORD_HEADER_BYTES + sample_bytes) + _IDENTITY_BYTES
        # Twice the plain size: whole sectors make the region larger, and with it the alignment.
        unit = record_alignment(2 * plain)
        record = -(-(_RECORD_HEADER_BYTES + sample_bytes) // unit) * unit
        return max(SAMPLE_LOG_BYTES, samples * record + _IDENTITY_BYTES)

    return room(WANTED_SAMPLES), room(LEAST_SAMPLES)


def plan_flash(
    board: Board,
    firmware_bytes: int,
    weights_bytes: int,
    sample_bytes: int,
    least_sample_bytes: int | None = None,
) -> FlashLayout:
    """Lays out the flash of ``board``.

    ``firmware_bytes`` is all that the image occupies in flash (with the weights that are built
    in), ``weights_bytes`` the blob that a slot must hold, ``sample_bytes`` the sample log that is
    wanted; where there is no room for it, one of ``least_sample_bytes`` does.
    Raises BudgetError with the table of needs if they don't fit.
    """
    slot_bytes = slot_header_bytes(weights_bytes) + weights_bytes
    least = sample_bytes if least_sample_bytes is None else least_sample_bytes
    left_for_firmware: int | None = None
    for log_bytes in dict.fromkeys((sample_bytes, min(sample_bytes, least))):
        needs = {"slot_a": slot_bytes, "slot_b": slot_bytes, _LOG: log_bytes}
        for outside in _OUTSIDE if board.external_flash is not None else _OUTSIDE[:1]:
            layout = _place(board, needs, outside)
            if layout is None:
                continue
            if layout.firmware.bytes >= firmware_bytes:
                return layout
            left_for_firmware = max(left_for_firmware or 0, layout.firmware.bytes)
    raise _too_small(board, firmware_bytes, slot_bytes, min(sample_bytes, least), left_for_firmware)


def _place(board: Board, needs: dict[str, int], outside: Sequence[str]) -> FlashLayout | None:
    """A layout with the regions ``outside`` in the external flash; None where there is no room."""
    taken: dict[str, Region] = {}
    end = len(board.flash.sectors)
    for name in reversed(_REGIONS):
        if name in outside:
            continue
        first, size = end, 0
        # At least one sector, also for an empty log: the device must be able to erase it.
        while size < max(needs[name], 1) and first > 0:
            first -= 1
            size += board.flash.sectors[first]
        if size < max(needs[name], 1):
            return None
        taken[name] = Region(
            "internal", board.flash.sector_address(first), size, first, end - first
        )
        end = first
    if end == 0:
        return None
    free = 0
    for name in outside:
        flash = board.external_flash
        assert flash is not None
        count = max(1, -(-needs[name] // flash.sector_bytes))
        if free + count > flash.sector_count:
            return None
        taken[name] = Region(
            "external",
            flash.address + free * flash.sector_bytes,
            count * flash.sector_bytes,
            len(board.flash.sectors) + free,
            count,
        )
        free += count
    app = sum(board.flash.sectors[:end])
    firmware = Region("internal", board.flash.address, app, 0, end)
    return FlashLayout(firmware, taken["slot_a"], taken["slot_b"], taken[_LOG])


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


def linker_script(board: Board, layout: FlashLayout) -> str:
    """The linker script for ``board``, with the symbols that boards.md lists."""
    symbols: list[str] = []
    for name, region in (
        ("slot_a", layout.slot_a),
        ("slot_b", layout.slot_b),
        ("samples", layout.samples),
    ):
        symbols += [
            f"__{name}_start = {region.address:#010x};",
            f"__{name}_bytes = {region.bytes};",
            f"__{name}_sector = {region.first_sector};",
            f"__{name}_sector_count = {region.sector_count};",
        ]
    symbols.append(f"__slot_bytes = {min(layout.slot_a.bytes, layout.slot_b.bytes)};")
    text = (resources.files("codegen.firmware") / "firmware.ld.template").read_text("utf-8")
    return Template(text).substitute(
        board=board.name,
        flash_address=f"{board.flash.address:#010x}",
        app_bytes=layout.firmware.bytes,
        sram_address=f"{board.sram.address:#010x}",
        sram_limit_bytes=board.sram_limit_bytes,
        stack_bytes=board.stack_bytes,
        flash_symbols="\n".join(symbols),
    )


def _too_small(
    board: Board, firmware_bytes: int, slot_bytes: int, log_bytes: int, app: int | None
) -> BudgetError:
    rows = [
        ("firmware with factory weights", firmware_bytes),
        ("weights slot A", slot_bytes),
        ("weights slot B", slot_bytes),
        ("sample log", log_bytes),
    ]
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
        f"(slots and log take whole sectors of {sizes}):\n"
        + "\n".join(lines)
        + f"\nUse a smaller model, {remedy}."
    )
