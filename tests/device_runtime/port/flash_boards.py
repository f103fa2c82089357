"""Boards with flash_firmware.c on them, of which tests call single functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import device_runtime
from codegen.firmware.boards import Board, load_board
from codegen.firmware.flash_layout import (
    FlashLayout,
    LogNeeds,
    layout_defines,
    linker_script,
    plan_flash,
)
from codegen.firmware.toolchain import find_toolchain
from codegen.host_toolchain import Source
from simulator.machines.elf_image import ElfImage, load_elf
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine

OK, NO_MEMORY, NOT_FOUND, FLASH_FAILED = 0, 2, 3, 5
EXTERNAL = 0x90000000
WEIGHTS_BYTES, SAMPLE_BYTES = 402, 30
"""Of flash_firmware.c."""

MakeMachine = Callable[..., UnicornMachine]


def external_board(sector_bytes: int = 65536) -> Board:
    """With so little flash inside that everything but the firmware lies outside."""
    described = load_board("stm32f746").model_dump()
    described["flash"]["sectors"] = [16384, 32768]
    described["external_flash"]["sector_bytes"] = sector_bytes
    described["external_flash"]["sector_count"] = 2**24 // sector_bytes
    return Board.model_validate(described)


def internal_board(name: str) -> Board:
    """With so many small sectors inside that all regions are there, and quickly erased."""
    described = load_board(name).model_dump()
    described["flash"]["sectors"] = [16384] * 2 + [4096] * 14
    return Board.model_validate(described)


def looked_at_clock() -> Callable[[], int]:
    """A clock that goes by 1 ms with 10 looks at it: time-outs don't depend on this machine."""
    looks = itertools.count()
    return lambda: next(looks) // 10


def build(board: Board, folder: Path) -> tuple[ElfImage, FlashLayout]:
    """The image for ``board``, and where its regions are."""
    layout = plan_flash(board, 0, WEIGHTS_BYTES, [LogNeeds(SAMPLE_BYTES, 3, 4096)])
    (folder / "firmware.ld").write_text(linker_script(board, layout))
    root = device_runtime.source_root()
    built = find_toolchain().build(
        [
            Source(Path(__file__).parent / "flash_firmware.c"),
            *map(Source, device_runtime.port_sources("stm32")),
            *map(Source, sorted((root / "storage").glob("*.c"))),
            *map(Source, sorted((root / "hash").glob("*.c"))),
        ],
        include_dirs=device_runtime.include_directories(),
        defines=layout_defines(board, layout),
        board=board,
        linker_script=folder / "firmware.ld",
        output_elf=folder / "firmware.elf",
    )
    return load_elf(built.output), layout


def making(board: Board, image: ElfImage) -> Iterator[MakeMachine]:
    """A function that makes machines, which are closed at the end."""
    machines: list[UnicornMachine] = []

    def make(flash_content: Iterable[tuple[int, bytes]] = ()) -> UnicornMachine:
        machines.append(
            UnicornMachine(board, image, clock=looked_at_clock(), flash_content=flash_content)
        )
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def booted(machine: UnicornMachine) -> UnicornMachine:
    """After it has come to its idle loop."""
    assert machine.run(2000) is StopReason.IDLE, machine.fault
    return machine
