"""A board with ``port_firmware.c`` on it, and a world whose clock a test moves on."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import device_runtime
from codegen.firmware.boards import Board, load_board
from codegen.firmware.flash_layout import LogNeeds, layout_defines, linker_script, plan_flash
from codegen.firmware.toolchain import find_toolchain
from codegen.host_toolchain import Source
from simulator.machines.elf_image import ElfImage, load_elf
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine

OK, FLASH_FAILED = 0, 5
TICK = 500.0
"""Milliseconds after which the main loop wakes up by itself."""


class Command(enum.IntEnum):
    """Of ``port_firmware.c``, in the order there."""

    NOTHING, WORK, ERASE, SEND, UNDEFINED, READ_NOWHERE = range(6)
    JUMP_NOWHERE, OVERFLOW, SPIN, RETURN, RESET, ERASE_OFTEN = range(6, 12)


def with_flow_control(board: Board) -> Board:
    described = board.model_dump()
    described["defines"]["TF_BOARD_USART_FLOW_CONTROL"] = 1
    return Board.model_validate(described)


BOARDS = {
    "stm32f407": load_board("stm32f407"),
    "stm32f746": load_board("stm32f746"),
    "stm32f207": load_board("stm32f207"),
    "stm32f407-flow": with_flow_control(load_board("stm32f407")),
    "stm32f746-flow": with_flow_control(load_board("stm32f746")),
}


def build(board: Board, folder: Path) -> ElfImage:
    layout = plan_flash(board, 0, 402, [LogNeeds(30, 3, 4096)])
    (folder / "firmware.ld").write_text(linker_script(board, layout))
    root = device_runtime.source_root()
    built = find_toolchain().build(
        [
            Source(Path(__file__).parent / "port_firmware.c"),
            *map(Source, device_runtime.port_sources(board.port)),
            Source(root / "hash" / "crc32.c"),
        ],
        include_dirs=device_runtime.include_directories(),
        defines=layout_defines(board, layout),
        board=board,
        linker_script=folder / "firmware.ld",
        output_elf=folder / "firmware.elf",
    )
    return load_elf(built.output)


class PortMachine(UnicornMachine):
    """The board, booted as far as its main loop once ``boot`` has been called."""

    def __init__(self, board: Board, image: ElfImage, **options: Any) -> None:
        self.world_milliseconds = 0.0
        super().__init__(board, image, clock=lambda: self.world_milliseconds, **options)

    def boot(self) -> None:
        """Up to the sleep of its main loop, with a carrier."""
        self.run_for(50)
        self.set_data_carrier_detect(True)
        self.run_for(TICK)
        assert self.word("received_bytes") == 0

    def run_for(self, milliseconds: float) -> list[StopReason]:
        """Let the world's clock go on; what happened but slices that were over."""
        self.world_milliseconds += milliseconds
        reasons = [self.run(1000)]
        while reasons[-1] in (StopReason.SLICE_OVER, StopReason.RESET):
            reasons.append(self.run(1000))
        return [reason for reason in reasons if reason is not StopReason.SLICE_OVER]

    def settle(self) -> None:
        """Until all bytes on the line have come, it has fallen idle, and they have been read."""
        while self.bytes_under_way:
            self.run_for(0)
        self.run_for(1)

    def word(self, symbol: str) -> int:
        address = self.image.address_of(symbol)
        return int.from_bytes(self.read_memory(address, 4), "little")

    def set_word(self, symbol: str, value: int) -> None:
        self.write_sram(self.image.address_of(symbol), value.to_bytes(4, "little"))

    def give(self, command: Command, argument: int = 0) -> None:
        """For the next turn of the main loop."""
        self.set_word("argument", argument)
        self.set_word("command", command)

    @property
    def received(self) -> bytes:
        address = self.image.address_of("received")
        return self.read_memory(address, self.word("received_bytes"))

    @property
    def report(self) -> tuple[int, int, int]:
        """Reset cause, fault code, PC of the fault."""
        return self.call("reset_cause"), self.call("fault_code"), self.call("fault_pc")

    def peripheral(self, kind: type) -> Any:
        return next(one for one in self._peripherals if isinstance(one, kind))


def noise(size: int) -> bytes:
    """Bytes of which no two places look alike."""
    state, made = 1, bytearray()
    for _ in range(size):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        made.append(state >> 16 & 0xFF)
    return bytes(made)


def names(boards: Iterable[str], *, flow: bool) -> list[str]:
    return [name for name in boards if name.endswith("flow") == flow]
