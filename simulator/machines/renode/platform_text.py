"""What Renode is told of a board: its platform (.repl) and the script of a node (.resc).

Facts of the boards' parts are those of docs/specification/boards.md.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from codegen.firmware.boards import Board
from simulator.errors import ImageError

MODELS = ("Stm32Serial.cs", "Stm32Flash.cs", "Stm32Quadspi.cs")
_CPUS = ("cortex-m4", "cortex-m7")
_USART_HZ = 42_000_000
_TIMER_HZ = 42_000_000
_SYSTICK_HZ = 21_000_000
_WATCHDOG_HZ = 32_000


def model_files() -> tuple[Path, ...]:
    """Our peripheral models, which Renode compiles when it loads them, in this order."""
    folder = resources.files("simulator.machines.renode") / "models"
    return tuple(Path(str(folder / name)) for name in MODELS)


def can_run(board: Board) -> bool:
    """Whether a platform can be written for this board."""
    return board.port == "stm32" and board.cpu in _CPUS


def platform_text(
    board: Board, worker_port: int, node: str, *, ends_with_worker: bool = True
) -> str:
    """The platform of one node, whose line goes to the worker that listens on this port.

    With the worker's end of the connection the process ends, unless it is somebody else's. Raises:
    ImageError for boards of another family.
    """
    if not can_run(board):
        raise ImageError(
            f"board {board.name}: Renode runs boards of the port stm32 with a Cortex-M4 or M7, "
            f"not {board.port} with {board.cpu}; `tinyfleet machines` shows what runs it"
        )
    usart = 2 if board.defines.get("TF_BOARD_USART_V2") else 1
    dtr = board.defines.get("TF_BOARD_DTR_PIN", 0)
    dcd = board.defines.get("TF_BOARD_DCD_PIN", 1)
    sectors = " ".join(str(size) for size in board.flash.sectors)
    return f"""\
// {board.title}
flash: Memory.MappedMemory @ sysbus {board.flash.address:#010x}
    size: {board.flash.bytes:#x}
    ResetByte: 0xFF

sram: Memory.MappedMemory @ sysbus {board.sram.address:#010x}
    size: {board.sram.bytes:#x}

nvic: IRQControllers.NVIC @ sysbus 0xE000E000
    priorityMask: 0xF0
    systickFrequency: {_SYSTICK_HZ}
    IRQ -> cpu@0

cpu: CPU.CortexM @ sysbus
    cpuType: "{board.cpu}"
    PerformanceInMips: {board.clock_hz // 1_000_000}
    nvic: nvic

dma2: Tinyfleet.Stm32Dma @ sysbus 0x40026400
    [0-7] -> nvic@[56-60,68-70]

usart1: Tinyfleet.Stm32Serial @ sysbus 0x40011000
    dma: dma2
    version: {usart}
    frequency: {_USART_HZ}
    workerPort: {worker_port}
    node: "{node}"
    endsWithWorker: {str(ends_with_worker).lower()}
    IRQ -> nvic@37
    Carrier -> gpioPortB@{dcd}

flash_controller: Tinyfleet.Stm32Flash @ sysbus 0x40023C00
    memory: flash
    serial: usart1
    sectors: "{sectors}"

adc1: Tinyfleet.Stm32Battery @ sysbus 0x40012000

gpioPortA: GPIOPort.STM32_GPIOPort @ sysbus <0x40020000, +0x400>
    modeResetValue: 0xA8000000
    numberOfAFs: 16

gpioPortB: GPIOPort.STM32_GPIOPort @ sysbus <0x40020400, +0x400>
    modeResetValue: 0x00000280
    numberOfAFs: 16
    {dtr} -> usart1@0

rtc: Timers.STM32F4_RTC @ sysbus 0x40002800
    AlarmIRQ -> nvic@41

rcc: Miscellaneous.STM32F4_RCC @ sysbus 0x40023800
    rtcPeripheral: rtc

rng: Miscellaneous.STM32F4_RNG @ sysbus 0x50060800
    -> nvic@80

timer2: Timers.STM32_Timer @ sysbus 0x40000000
    -> nvic@28
    frequency: {_TIMER_HZ}
    initialLimit: 0xFFFFFFFF

iwdg: Timers.STM32_IndependentWatchdog @ sysbus 0x40003000
    frequency: {_WATCHDOG_HZ}
    windowOption: false
{_beside(board)}"""


def _beside(board: Board) -> str:
    """The flash beside the microcontroller, where there is one, and the ports of its pins."""
    external = board.external_flash
    if external is None:
        return ""
    return f"""
external_flash: Memory.MappedMemory @ sysbus {external.address:#010x}
    size: {external.bytes:#x}
    ResetByte: 0xFF

quadspi: Tinyfleet.Stm32Quadspi @ sysbus 0xA0001000
    memory: external_flash
    internalFlash: flash_controller
    id: {external.id:#x}

gpioPortD: GPIOPort.STM32_GPIOPort @ sysbus <0x40020C00, +0x400>
    numberOfAFs: 16

gpioPortE: GPIOPort.STM32_GPIOPort @ sysbus <0x40021000, +0x400>
    numberOfAFs: 16
"""


def node_script(board: Board, node: str, platform: Path, firmware: Path) -> str:
    """Commands that make a node with its firmware; flash content of its own comes behind them.

    A reset goes on from the vectors in the flash, with SRAM and flash as they are.
    """
    vectors = f"sysbus.cpu VectorTableOffset {board.flash.address:#010x}"
    return f"""\
mach create "{node}"
machine LoadPlatformDescription @{platform}
sysbus LoadELF @{firmware}
macro reset "{vectors}"
"""
