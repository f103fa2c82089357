import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codegen.compile import compile_model
from codegen.firmware.boards import Board, load_board
from codegen.firmware.bundle import Bundle
from simulator.machines.elf_image import ElfImage, load_elf
from simulator.machines.registry import machine_kind
from simulator.machines.unicorn import UnicornMachine

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
FIRMWARE = Path(__file__).parent / "firmware"
BOARDS = {
    "stm32f746": ("cortex-m7", "fpv5-sp-d16", 1),
    "stm32f407": ("cortex-m4", "fpv4-sp-d16", 0),
}


def compile_image(board: str, folder: Path, *sources: Path) -> Path:
    cpu, fpu, usart_v2 = BOARDS[board]
    target = folder / f"{board}.elf"
    common = [
        "-O2",
        "-g",
        "-ffreestanding",
        "-nostdlib",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-DTF_USART_V2={usart_v2}",
        f"-DDTR_PIN={load_board(board).defines.get('TF_BOARD_DTR_PIN', 0)}u",
        "-T",
        str(FIRMWARE / "image.ld"),
        "-o",
        str(target),
        *map(str, sources),
    ]
    if gcc := shutil.which("arm-none-eabi-gcc"):
        command = [
            gcc,
            f"-mcpu={cpu}",
            "-mthumb",
            "-mfloat-abi=hard",
            f"-mfpu={fpu}",
            "-fno-tree-loop-distribute-patterns",
            *common,
        ]
    else:
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            "thumb-freestanding-eabihf",
            f"-mcpu={cpu.replace('-', '_')}",
            "-fno-builtin",
            *common,
        ]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="session", params=sorted(BOARDS))
def board(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def image(board: str, tmp_path_factory: pytest.TempPathFactory) -> ElfImage:
    return load_elf(compile_image(board, tmp_path_factory.mktemp("firmware"), FIRMWARE / "image.c"))


ALL_OUTSIDE = "stm32f746 with all outside"
"""A board for `compiled`: in its own flash there is room for the firmware only."""


def board_called(name: str) -> Board:
    if name != ALL_OUTSIDE:
        return load_board(name)
    described = load_board("stm32f746").model_dump()
    described["flash"]["sectors"] = [32768, 262144]
    return Board.model_validate(described)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The firmware that ships for a board of this name, with the model of the example."""

    @functools.cache
    def compiled_for(board: str) -> Bundle:
        return compile_model(
            DIGITS / "digits.onnx",
            board_called(board),
            None,
            DIGITS / "calibration.npz",
            tmp_path_factory.mktemp("bundle") / "digits",
            ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
        )

    return compiled_for


@pytest.fixture(scope="session")
def digits(compiled: Callable[[str], Bundle]) -> Bundle:
    """The firmware that ships, with the model of the example."""
    return compiled("stm32f407")


def skip_without(machine: str) -> None:
    """Skip the test, and say how to get it, where a machine isn't on this computer."""
    if why := machine_kind(machine).why_absent():
        pytest.skip(why)


class WorldClock:
    """Milliseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def world() -> WorldClock:
    return WorldClock()


@pytest.fixture
def make_machine(
    board: str, image: ElfImage, world: WorldClock
) -> Iterator[Callable[..., UnicornMachine]]:
    machines: list[UnicornMachine] = []

    def make(**options: Any) -> UnicornMachine:
        machines.append(UnicornMachine(board, image, **{"clock": world, **options}))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture
def machine(make_machine: Callable[..., UnicornMachine]) -> UnicornMachine:
    return make_machine()
