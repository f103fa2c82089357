"""Linking an image to where it fits: how large it is shows only when it is linked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from codegen.errors import BudgetError, ToolchainError
from codegen.firmware.boards import Board
from codegen.firmware.boot_sector import ROOMY_BYTES, fill_boot_sector
from codegen.firmware.flash_layout import (
    FlashLayout,
    Keep,
    LogNeeds,
    layout_without_stores,
    linker_script,
    plan_flash,
)
from codegen.host_toolchain import LinkError


@dataclass(frozen=True)
class FlashPlan:
    """What has to find its place in the flash of a board besides the firmware."""

    board: Board
    weights_bytes: int
    frozen_bytes: int
    log: tuple[LogNeeds, ...]
    keep: Keep
    personal_bytes: int = 0

    def layout(self, firmware_bytes: int) -> FlashLayout:
        """With room for so much behind the boot sector, and for the weights built in at least.

        0: how much isn't known yet.
        """
        return plan_flash(
            self.board,
            max(firmware_bytes, self.built_in_bytes),
            self.weights_bytes,
            self.log,
            self.personal_bytes,
            linked=firmware_bytes > 0,
        )

    @property
    def built_in_bytes(self) -> int:
        """Bytes of all weights, which the image has in it."""
        return self.weights_bytes + self.frozen_bytes

    def check_weights(self) -> None:
        """Raises BudgetError where the weights alone are more than the flash: early, and without a
        compiler, which takes long over large ones."""
        if self.built_in_bytes > self.board.flash.bytes:
            self.layout(0)

    def first_layout(self) -> FlashLayout:
        """With room for the weights; where there is none, one that an image only overflows, so that
        the table of needs will have the code in it as well."""
        try:
            return self.layout(0)
        except BudgetError:
            return layout_without_stores(self.board)

    def script(self, layout: FlashLayout, boot_functions: tuple[str, ...]) -> str:
        """The linker script for ``layout`` with those functions in the boot sector."""
        return linker_script(self.board, layout, self.keep, boot_functions)


def link_where_it_fits(
    flash: FlashPlan, link: Callable[[FlashLayout, str], None], elf: Path
) -> FlashLayout:
    """Links ``elf``; only then one knows how much room the slots and the log may leave it."""
    layout = flash.first_layout()
    in_boot: tuple[str, ...] | None = None

    def overflow(room: FlashLayout) -> int:
        try:
            link(layout, flash.script(room, in_boot or ()))
            return 0
        except LinkError as error:
            over = _overflow(error, "FLASH")
            if over == 0:
                raise _budget_error(error, flash.board) from error
            return over
        except ToolchainError as error:
            try:
                flash.layout(0)
            except BudgetError as budget:
                unknown = f"How large the code is isn't known: {error}"
                raise BudgetError(f"{budget}\n{unknown}") from error
            raise

    while over := overflow(layout):
        needed = layout.firmware.bytes + over
        if in_boot is None:
            overflow(replace(layout, firmware=replace(layout.firmware, bytes=ROOMY_BYTES)))
            in_boot = fill_boot_sector(elf, layout.boot.bytes)
            if in_boot:
                continue
        layout = flash.layout(needed)
    return layout


def _overflow(error: LinkError, region: str) -> int:
    """Bytes by which the linker overran a memory region of the script; 0 where it didn't say."""
    excess = re.findall(rf"region [`']{region}'.*? overflowed by (\d+) bytes", error.output)
    return max(map(int, excess), default=0)


def _budget_error(error: LinkError, board: Board) -> ToolchainError | BudgetError:
    """A budget error where the linker ran out of SRAM, else ``error`` itself."""
    over = _overflow(error, "SRAM")
    if over or "SRAM overflowed" in error.output:
        excess = f" by {over:,} bytes" if over else ""
        return BudgetError(
            f"the firmware's own data and stack exceed the SRAM of {board.name} "
            f"({board.sram_limit_bytes:,} bytes){excess}, before any plan; raise "
            "sram_limit_bytes or use a board with more SRAM"
        )
    return error
