"""Where in flash the firmware, the two weights slots and the sample log lie.

The firmware starts in sector 0. The regions that are erased while it runs are runs of whole
sectors, handed out from the end of flash downwards: sample log last, slot B and slot A below it.
What remains belongs to the firmware.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from string import Template

from codegen.boards import Board
from codegen.errors import BudgetError

SLOT_HEADER_BYTES = 4096
"""Of a weights slot, before the payload (docs/specification/flash.md)."""


@dataclass(frozen=True)
class Region:
    """A run of whole sectors: address and size in bytes, first sector and number of them."""

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
    def weights_limit_bytes(self) -> int:
        """Largest weights blob that either slot holds."""
        return min(self.slot_a.bytes, self.slot_b.bytes) - SLOT_HEADER_BYTES


def plan_flash(
    board: Board, firmware_bytes: int, weights_bytes: int, sample_bytes: int
) -> FlashLayout:
    """Lays out the flash of ``board``.

    ``firmware_bytes`` is all that the image occupies in flash (with the weights that are built
    in), ``weights_bytes`` the blob that a slot must hold, ``sample_bytes`` the sample log.
    Raises BudgetError with the table of needs if they don't fit.
    """
    wanted = [
        ("samples", sample_bytes),
        ("slot_b", SLOT_HEADER_BYTES + weights_bytes),
        ("slot_a", SLOT_HEADER_BYTES + weights_bytes),
    ]
    sectors = board.flash.sectors
    end = len(sectors)
    taken: dict[str, Region] = {}
    for name, needed in wanted:
        first, size = end, 0
        # At least one sector, also for an empty log: the device must be able to erase it.
        while size < max(needed, 1) and first > 0:
            first -= 1
            size += sectors[first]
        if size < max(needed, 1):
            raise _too_small(board, firmware_bytes, weights_bytes, sample_bytes, None)
        taken[name] = Region(board.flash.sector_address(first), size, first, end - first)
        end = first
    app = sum(sectors[:end])
    if end == 0 or app < firmware_bytes:
        raise _too_small(board, firmware_bytes, weights_bytes, sample_bytes, app)
    firmware = Region(board.flash.address, app, 0, end)
    return FlashLayout(firmware, taken["slot_a"], taken["slot_b"], taken["samples"])


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
    text = (resources.files("codegen") / "firmware.ld.template").read_text("utf-8")
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
    board: Board, firmware_bytes: int, weights_bytes: int, sample_bytes: int, app: int | None
) -> BudgetError:
    slot = SLOT_HEADER_BYTES + weights_bytes
    rows = [
        ("firmware with factory weights", firmware_bytes),
        ("weights slot A", slot),
        ("weights slot B", slot),
        ("sample log", sample_bytes),
    ]
    lines = [f"  {name:<30} {size:>9,} bytes" for name, size in rows]
    lines.append(f"  {'needed (before whole sectors)':<30} {sum(s for _, s in rows):>9,} bytes")
    lines.append(f"  {'flash of ' + board.name:<30} {board.flash.bytes:>9,} bytes")
    if app is not None:
        lines.append(f"  {'left for the firmware':<30} {app:>9,} bytes")
    sizes = ", ".join(f"{size // 1024} KiB" for size in board.flash.sectors)
    return BudgetError(
        f"the model doesn't fit the flash of {board.name} "
        f"(slots and log take whole sectors of {sizes}):\n"
        + "\n".join(lines)
        + "\nUse a smaller model, a smaller sample log, or a board with more flash."
    )
