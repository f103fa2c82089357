"""The core's own peripherals: interrupt controller, SysTick, system control block.

The firmware never takes an interrupt (PRIMASK is set): what is pending and enabled only ends its
``wfi``. Faults are taken; what they leave in the status registers is here, how the core enters
their handler in ``core_exceptions``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from simulator.clock import SECOND
from simulator.devices.core_clock import NEVER, CoreClock
from simulator.devices.peripherals import Peripheral

HARD_FAULT = 3


class InterruptController:
    """Which lines are enabled, and which are pending."""

    def __init__(self) -> None:
        """No line is enabled, none is connected."""
        self.enabled = 0
        self.pending = 0
        self._sources: dict[int, Callable[[], bool]] = {}

    def connect(self, line: int, is_asserted: Callable[[], bool]) -> Callable[[], None]:
        """Connect a peripheral's interrupt; it calls the result whenever it may have risen."""
        self._sources[line] = is_asserted

        def look() -> None:
            if is_asserted():
                self.pending |= 1 << line

        return look

    def clear(self, lines: int) -> None:
        """Pending bits of lines that are still asserted stay."""
        self.pending &= ~lines
        for line, is_asserted in self._sources.items():
            if lines >> line & 1 and is_asserted():
                self.pending |= 1 << line

    def reset(self) -> None:
        """Nothing enabled, nothing pending."""
        self.enabled = self.pending = 0


class SystemControl(Peripheral):
    """NVIC, SysTick and SCB as registers; those without a meaning here hold what is written."""

    BASE = 0xE000E000
    SIZE = 0x1000
    SYST_CSR, SYST_RVR, SYST_CVR = 0x10, 0x14, 0x18
    TICK_ENABLE, TICK_INTERRUPT, TICK_FROM_CORE = 1, 2, 4
    CPUID, ICSR, VTOR, AIRCR = 0xD00, 0xD04, 0xD08, 0xD0C
    CFSR, HFSR, MMFAR, BFAR = 0xD28, 0xD2C, 0xD34, 0xD38
    PEND_TICK_SET, PEND_TICK_CLEAR = 1 << 26, 1 << 25
    VECTKEY, SYSRESETREQ = 0x05FA, 1 << 2
    FORCED = 1 << 30
    MEMORY_ADDRESS_IS_VALID, BUS_ADDRESS_IS_VALID = 1 << 7, 1 << 15
    CPUIDS: ClassVar[dict[str, int]] = {
        "cortex-m3": 0x412FC230,
        "cortex-m4": 0x410FC241,
        "cortex-m7": 0x411FC271,
    }

    def __init__(
        self,
        cpu: str,
        clock: CoreClock,
        core_hertz: Callable[[], int],
        request_reset: Callable[[], None],
    ) -> None:
        """``request_reset`` is called on a SYSRESETREQ with the right key."""
        super().__init__()
        self._cpuid = self.CPUIDS.get(cpu, 0)
        self._clock, self._core_hertz, self._request_reset = clock, core_hertz, request_reset
        self.interrupts = InterruptController()
        self.active_exception = 0
        self._tick_is_pending = False
        self._tick_at = NEVER

    def has(self, offset: int) -> bool:
        """All of its words."""
        return offset < self.SIZE and offset % 4 == 0

    @property
    def wakes_up(self) -> bool:
        """Whether something is pending that ends a ``wfi``."""
        return self._tick_is_pending or bool(self.interrupts.pending & self.interrupts.enabled)

    @property
    def next_tick(self) -> int:
        """When SysTick will be pending again; NEVER where it is off."""
        return self._tick_at

    def bring_up_to_date(self) -> None:
        """What SysTick has done by now."""
        now = self._clock.now
        if now >= self._tick_at:
            self._tick_is_pending = True
            period = self._tick_nanoseconds()
            self._tick_at += ((now - self._tick_at) // period + 1) * period

    def note_fault(self, status: int, address: int | None) -> None:
        """A fault that PRIMASK escalates to a hard fault; ``status`` is its bit of CFSR."""
        if address is not None and status & 0xFF:
            status |= self.MEMORY_ADDRESS_IS_VALID
            self.values[self.MMFAR] = address
        elif address is not None and status & 0xFF00:
            status |= self.BUS_ADDRESS_IS_VALID
            self.values[self.BFAR] = address
        self.values[self.CFSR] = self.values.get(self.CFSR, 0) | status
        self.values[self.HFSR] = self.values.get(self.HFSR, 0) | self.FORCED
        self.active_exception = HARD_FAULT

    def reset(self) -> None:
        """Everything off."""
        super().reset()
        self.interrupts.reset()
        self.active_exception = 0
        self._tick_is_pending = False
        self._tick_at = NEVER

    def read(self, offset: int) -> int:
        """Set/clear register pairs read the state."""
        self.bring_up_to_date()
        if offset == self.CPUID:
            return self._cpuid
        if offset == self.AIRCR:
            return 0xFA050000
        if offset == self.ICSR:
            return self.active_exception | (self.PEND_TICK_SET if self._tick_is_pending else 0)
        if 0x100 <= offset < 0x300:
            lines = self.interrupts.enabled if offset < 0x200 else self.interrupts.pending
            return lines >> 8 * (offset & 0x7F) & 0xFFFFFFFF
        return self.values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Set/clear register pairs, SysTick, and resets act at once."""
        self.bring_up_to_date()
        lines = value << 8 * (offset & 0x7F)
        if offset == self.AIRCR:
            if value >> 16 == self.VECTKEY and value & self.SYSRESETREQ:
                self._request_reset()
        elif offset == self.ICSR:
            if value & self.PEND_TICK_CLEAR:
                self._tick_is_pending = False
            elif value & self.PEND_TICK_SET:
                self._tick_is_pending = True
        elif offset in (self.CFSR, self.HFSR):
            self.values[offset] = self.values.get(offset, 0) & ~value
        elif 0x100 <= offset < 0x180:
            self.interrupts.enabled |= lines
        elif 0x180 <= offset < 0x200:
            self.interrupts.enabled &= ~lines
        elif 0x200 <= offset < 0x280:
            self.interrupts.pending |= lines
        elif 0x280 <= offset < 0x300:
            self.interrupts.clear(lines)
        else:
            self.values[offset] = value
            if offset in (self.SYST_CSR, self.SYST_CVR):
                self._start_tick()

    def _start_tick(self) -> None:
        both = self.TICK_ENABLE | self.TICK_INTERRUPT
        if self.values.get(self.SYST_CSR, 0) & both == both:
            self._tick_at = self._clock.now + self._tick_nanoseconds()
        else:
            self._tick_at = NEVER

    def _tick_nanoseconds(self) -> int:
        hertz = self._core_hertz()
        divider = 1 if self.values.get(self.SYST_CSR, 0) & self.TICK_FROM_CORE else 8
        return (self.values.get(self.SYST_RVR, 0) + 1) * divider * SECOND // hertz
