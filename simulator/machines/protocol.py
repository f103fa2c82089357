"""What every way of running the firmware offers: boot, run a slice, exchange bytes, cut power."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


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


@dataclass(frozen=True)
class TrafficCount:
    """Bytes on the serial line since the machine was made."""

    up: int
    """From the firmware to the modem."""
    down: int
    """From the modem to the board."""


class Machine(Protocol):
    """One device. Not thread safe: one owner runs it and moves its bytes."""

    def run(self, max_milliseconds: float) -> StopReason:
        """Run until the firmware idles, the slice is over, or something happened."""
        ...

    def receive(self, data: bytes) -> int:
        """Put ``data`` on the serial line to the device; returns how many bytes were taken."""
        ...

    @property
    def bytes_under_way(self) -> int:
        """How many of them haven't arrived yet."""
        ...

    def take_transmitted(self) -> bytes:
        """Bytes that the firmware has sent since the last call."""
        ...

    @property
    def data_terminal_ready(self) -> bool:
        """Whether the firmware wants the modem to dial and stay (DTR)."""
        ...

    def set_data_carrier_detect(self, connected: bool) -> None:
        """Tell the firmware whether the modem's stream is open (DCD)."""
        ...

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start from the reset vector; flash keeps its content, SRAM only where asked."""
        ...

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now, which is torn."""
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
