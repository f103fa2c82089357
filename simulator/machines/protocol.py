"""What every way of running the firmware offers: boot, run a slice, exchange bytes, cut power.

All that a fleet's worker and its modems use of a machine is here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from simulator.devices.modem import Terminal

CHARGING_FLAG = 0x80
"""In the byte of a battery's charge, besides its percent: TF_CHARGING in tinyfleet/port.h."""


class StopReason(enum.Enum):
    """Why a slice ended."""

    IDLE = "idle"
    """The firmware sleeps (``wfi``): run it again when bytes came, or after its next tick."""
    SLICE_OVER = "slice over"
    """It has more to do: run it again as soon as others had their turn."""
    RESET = "reset"
    """It, or its watchdog, asked for a reset, which has been done: SRAM kept, all else as after
    power on."""
    POWER_CUT = "power cut"
    """The armed power cut happened; ``power_on`` starts it again."""
    FAULT = "fault"
    """The firmware did what the board can't do; ``machine.fault`` says what."""


class Capability(enum.Enum):
    """What one way of running the firmware offers and another doesn't."""

    LINE_SPEED = "line-speed ring"
    """Bytes come at the line's speed, into a ring that nobody empties while the core works."""
    POWER_CUT = "power cut"
    """The power can be cut in any flash operation, which is torn as a seed says."""
    FLASH_TIMES = "flash times"
    """Flash operations take the time that the datasheet gives them."""
    EXTERNAL_FLASH = "external flash"
    """A flash beside the microcontroller holds what its own has no room for."""
    STACK_USE = "stack use"
    """``stack_high_water_bytes`` tells it."""
    INSTRUCTION_COUNT = "instruction count"
    """Executed instructions are counted."""
    CHARGING = "charging"
    """The firmware learns that a charger feeds the device."""


@dataclass(frozen=True)
class TrafficCount:
    """Bytes on the serial line since the machine was made."""

    up: int
    """From the firmware to the modem."""
    down: int
    """From the modem to the board."""


class Machine(Terminal, Protocol):
    """One device, whose serial line is a modem's terminal.

    Not thread safe: one owner runs it and moves its bytes.
    """

    def run(self, max_milliseconds: float) -> StopReason:
        """Run until the firmware idles, the slice is over, or something happened."""
        ...

    @property
    def tick_milliseconds(self) -> float:
        """After how long the idle firmware wants to be run again when nothing happens."""
        ...

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line since the machine was made."""
        ...

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start from the reset vector; flash keeps its content, SRAM only where asked."""
        ...

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now, which is torn."""
        ...

    @property
    def flash_operations(self) -> int:
        """Words programmed and sectors erased since the machine was made."""
        ...

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of the flash, as a debug probe would read them."""
        ...

    def stack_high_water_bytes(self) -> int:
        """Deepest stack use since power on; 0 where nobody knows."""
        ...

    @property
    def fault(self) -> Exception | None:
        """What stopped the machine for good, if anything did."""
        ...

    @property
    def last_fault(self) -> Exception | None:
        """The last fault; where it isn't ``fault``, the firmware was left to deal with it."""
        ...

    def close(self) -> None:
        """Give back all memory."""
        ...
