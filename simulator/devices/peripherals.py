"""The peripherals of docs/specification/boards.md, one small class each.

A peripheral sees aligned 32-bit registers as (offset, value) and knows nothing of Unicorn;
what it does to the rest of the machine it does through callables that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

from simulator.clock import SECOND
from simulator.devices.core_clock import NEVER, CoreClock


class Peripheral:
    """A block of registers; those not in ``REGISTERS`` fault."""

    BASE: ClassVar[int]
    SIZE: ClassVar[int] = 0x400
    REGISTERS: ClassVar[dict[str, int]] = {}
    RESET_VALUES: ClassVar[dict[int, int]] = {}
    """By offset, of those that aren't zero after a reset."""

    def __init__(self) -> None:
        """All registers as after a reset."""
        self.values: dict[int, int] = dict.fromkeys(self.REGISTERS.values(), 0) | self.RESET_VALUES

    def has(self, offset: int) -> bool:
        """Whether there is a register at ``offset``."""
        return offset in self.values

    def read(self, offset: int) -> int:
        """Value of the register at ``offset``."""
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """Store ``value`` to the register at ``offset``."""
        self.values[offset] = value

    def reset(self) -> None:
        """What the reset line does."""
        for offset in self.values:
            self.values[offset] = self.RESET_VALUES.get(offset, 0)


class Rcc(Peripheral):
    """Clock control: reads give what was written, with every ready bit set; causes of resets."""

    BASE = 0x40023800
    CR, PLLCFGR, CFGR, CSR = 0x00, 0x04, 0x08, 0x74
    DCKCFGR1, DCKCFGR2 = 0x8C, 0x90
    TIMPRE = 1 << 24
    INTERNAL_HZ, EXTERNAL_HZ = 16_000_000, 8_000_000
    RESET_VALUES: ClassVar[dict[int, int]] = {0x00: 0x83, 0x04: 0x24003010}
    REMOVE_FLAGS = 1 << 24
    BROWN_OUT, PIN, POWER_ON, SOFTWARE, WATCHDOG = (1 << bit for bit in (25, 26, 27, 28, 29))

    def __init__(self, clocks_changed: Callable[[], None]) -> None:
        """``clocks_changed`` is called after each write that may change a clock."""
        super().__init__()
        self._clocks_changed = clocks_changed
        self._reset_flags = 0

    @property
    def core_hz(self) -> int:
        """Clock of core and AHB as CFGR and PLLCFGR set it up (RM0090, 7.3.2 and 7.3.3)."""
        oscillators = self.INTERNAL_HZ, self.EXTERNAL_HZ
        pll, switch = self.values.get(self.PLLCFGR, 0), self.values.get(self.CFGR, 0)
        if switch & 3 == 2:
            source = oscillators[pll >> 22 & 1] / max(1, pll & 0x3F)
            hertz = source * (pll >> 6 & 0x1FF) / (2 * ((pll >> 16 & 3) + 1))
        else:
            hertz = oscillators[switch & 1]
        divider = switch >> 4 & 0xF
        return max(1, round(hertz / (1, 2, 4, 8, 16, 64, 128, 256, 512)[max(0, divider - 7)]))

    @property
    def apb1_timer_hz(self) -> int:
        """Clock of the timers on APB1: a multiple of the bus's, which TIMPRE chooses (F7)."""
        factor = 4 if self.values.get(self.DCKCFGR1, 0) & self.TIMPRE else 2
        return min(self.core_hz, factor * self.core_hz // self._bus_divider(10))

    @property
    def usart1_hz(self) -> int:
        """Clock of USART1: that of APB2, or what an F7 chooses instead."""
        choice = self.values.get(self.DCKCFGR2, 0) & 3
        bus = self.core_hz // self._bus_divider(13)
        return (bus, self.core_hz, self.INTERNAL_HZ, 32_768)[choice]

    def _bus_divider(self, shift: int) -> int:
        field = self.values.get(self.CFGR, 0) >> shift & 7
        return (1, 2, 4, 8, 16)[max(0, field - 3)]

    def note_reset(self, cause: int) -> None:
        """Before ``reset``: what reset the board; flags add up until the firmware removes them."""
        if cause == self.POWER_ON:
            self._reset_flags = self.POWER_ON | self.BROWN_OUT
        self._reset_flags |= cause | self.PIN  # each reset pulls the pin low

    def reset(self) -> None:
        """Internal oscillator."""
        self.values = dict(self.RESET_VALUES)
        self._clocks_changed()

    def has(self, offset: int) -> bool:
        """All of its words."""
        return offset < self.SIZE and offset % 4 == 0

    def read(self, offset: int) -> int:
        """Oscillators and PLLs are ready as soon as they are on; the clock switch follows."""
        value = self.values.get(offset, 0)
        if offset == self.CR:  # xxxON bits 0, 16, 24, 26, 28; xxxRDY is the next bit
            value |= (value & 0x15010001) << 1
        elif offset == self.CFGR:
            value = (value & ~0xC) | (value & 3) << 2
        elif offset == self.CSR:
            value = self._reset_flags | value & 1 | (value & 1) << 1
        return value

    def write(self, offset: int, value: int) -> None:
        """RMVF removes the reset flags."""
        self.values[offset] = value
        if offset == self.CSR and value & self.REMOVE_FLAGS:
            self._reset_flags = 0
        elif offset <= self.CFGR:
            self._clocks_changed()


class Pwr(Peripheral):
    """Power control: the regulator's voltage is ready at once."""

    BASE = 0x40007000
    CR, CSR = 0x00, 0x04
    REGISTERS: ClassVar[dict[str, int]] = {"CR": 0x00, "CSR": 0x04}
    RESET_VALUES: ClassVar[dict[int, int]] = {0x00: 0xC000}
    VOSRDY = 1 << 14

    def read(self, offset: int) -> int:
        """VOSRDY is always set."""
        return self.VOSRDY if offset == self.CSR else self.values[offset]


class Iwdg(Peripheral):
    """The independent watchdog: counts on its own oscillator and resets the board at zero."""

    BASE = 0x40003000
    KR, PR, RLR, SR = 0x00, 0x04, 0x08, 0x0C
    REGISTERS: ClassVar[dict[str, int]] = {"KR": 0x00, "PR": 0x04, "RLR": 0x08, "SR": 0x0C}
    RESET_VALUES: ClassVar[dict[int, int]] = {0x08: 0xFFF}
    START, REFRESH, UNLOCK = 0xCCCC, 0xAAAA, 0x5555
    HERTZ = 32_000
    UPDATE_CYCLES = 5

    def __init__(self, clock: CoreClock, changed: Callable[[], None]) -> None:
        """``changed`` is called when ``expires_at`` is another time than before."""
        super().__init__()
        self._clock, self._changed = clock, changed
        self.expires_at = NEVER
        """When it resets the board unless it is refreshed; NEVER while it is off."""
        self._is_unlocked = False
        self._updated_at = {self.PR: 0, self.RLR: 0}

    def reset(self) -> None:
        """Off."""
        super().reset()
        self.expires_at = NEVER
        self._is_unlocked = False
        self._updated_at = {self.PR: 0, self.RLR: 0}

    def read(self, offset: int) -> int:
        """SR tells which of PR and RLR are still on their way into the watchdog's domain."""
        if offset == self.SR:
            now = self._clock.now
            return sum(1 << bit for bit, at in enumerate(self._updated_at.values()) if now < at)
        return 0 if offset == self.KR else self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """Keys start, refresh and unlock."""
        if offset == self.KR:
            self._is_unlocked = value == self.UNLOCK
            if value == self.START or (value == self.REFRESH and self.expires_at != NEVER):
                divider = 4 << min(6, self.values[self.PR])
                count = (self.values[self.RLR] + 1) * divider
                self.expires_at = self._clock.now + count * SECOND // self.HERTZ
                self._changed()
        elif offset in self._updated_at and self._is_unlocked:
            self.values[offset] = value & (7 if offset == self.PR else 0xFFF)
            update = self.UPDATE_CYCLES * SECOND // self.HERTZ
            self._updated_at[offset] = self._clock.now + update


class Gpio(Peripheral):
    """A port whose pins serve other peripherals: registers that hold what is written."""

    REGISTERS: ClassVar[dict[str, int]] = {
        "MODER": 0x00,
        "OTYPER": 0x04,
        "OSPEEDR": 0x08,
        "PUPDR": 0x0C,
        "IDR": 0x10,
        "ODR": 0x14,
        "BSRR": 0x18,
        "LCKR": 0x1C,
        "AFRL": 0x20,
        "AFRH": 0x24,
    }


class GpioA(Gpio):
    """Port A: battery, flow control, and the serial line's transmitter on some boards."""

    BASE = 0x40020000
    RESET_VALUES: ClassVar[dict[int, int]] = {0x00: 0xA8000000, 0x08: 0x0C000000, 0x0C: 0x64000000}


class GpioD(Gpio):
    """Port D: external flash."""

    BASE = 0x40020C00


class GpioE(Gpio):
    """Port E: external flash."""

    BASE = 0x40021000


class GpioB(Gpio):
    """Port B: DTR (output) and DCD (input) of the modem; PB0 and PB1 unless the board says so."""

    BASE = 0x40020400
    RESET_VALUES: ClassVar[dict[int, int]] = {0x00: 0x280, 0x08: 0xC0, 0x0C: 0x100}

    def __init__(self, dtr_pin: int = 0, dcd_pin: int = 1) -> None:
        """No carrier."""
        super().__init__()
        self._dtr, self._dcd = dtr_pin, dcd_pin
        self.carrier = False
        self.hang_ups = 0
        """How often DTR fell: an edge between two looks of the modem counts, too."""

    @property
    def data_terminal_ready(self) -> bool:
        """The DTR pin driven high."""
        is_output = self.values[0x00] >> 2 * self._dtr & 3 == 1
        return bool(is_output and self.values[0x14] >> self._dtr & 1)

    def read(self, offset: int) -> int:
        """IDR shows DCD and the output DTR."""
        if offset == 0x10:
            return int(self.carrier) << self._dcd | int(self.data_terminal_ready) << self._dtr
        return 0 if offset == 0x18 else self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """BSRR: the low half sets, the high half resets, setting wins."""
        was_ready = self.data_terminal_ready
        if offset == 0x18:
            output = self.values[0x14] & ~(value >> 16) | value & 0xFFFF
            self.values[0x14] = output
        elif offset != 0x10:
            self.values[offset] = value
        if was_ready and not self.data_terminal_ready:
            self.hang_ups += 1

    def reset(self) -> None:
        """All pins become inputs, so DTR falls; DCD is the modem's."""
        if self.data_terminal_ready:
            self.hang_ups += 1
        super().reset()


class Tim2(Peripheral):
    """A free running 32-bit counter."""

    BASE = 0x40000000
    CR1, EGR, CNT, PSC = 0x00, 0x14, 0x24, 0x28
    REGISTERS: ClassVar[dict[str, int]] = {
        "CR1": 0x00,
        "CR2": 0x04,
        "SMCR": 0x08,
        "DIER": 0x0C,
        "SR": 0x10,
        "EGR": 0x14,
        "CCMR1": 0x18,
        "CCMR2": 0x1C,
        "CCER": 0x20,
        "CNT": 0x24,
        "PSC": 0x28,
        "ARR": 0x2C,
    }

    def __init__(self, time: Callable[[], int], clock_hertz: Callable[[], int]) -> None:
        """``time`` in nanoseconds; ``clock_hertz`` is what the prescaler divides."""
        super().__init__()
        self._time, self._clock_hertz = time, clock_hertz
        self._start = 0

    def read(self, offset: int) -> int:
        """CNT follows the time once the counter is enabled (CEN)."""
        if offset == self.CNT:
            counting = self.values[self.CR1] & 1
            passed = self._time() - self._start if counting else 0
            return self.values[self.CNT] + passed * self._hertz() // SECOND & 0xFFFFFFFF
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """Whatever changes how it counts begins a new span of time; EGR starts from zero."""
        if offset in (self.CR1, self.CNT, self.PSC, self.EGR):
            self.values[self.CNT] = self.read(self.CNT)
            self._start = self._time()
        if offset == self.EGR:
            self.values[self.CNT] = 0
        else:
            self.values[offset] = value

    def _hertz(self) -> int:
        return max(1, self._clock_hertz() // (self.values[self.PSC] % 65536 + 1))


class Adc1(Peripheral):
    """A conversion is done as soon as it is asked for; the only channel in use is the battery."""

    BASE = 0x40012000
    SR, CR1, CR2, SQR1, SQR3, DR, CCR = 0x00, 0x04, 0x08, 0x2C, 0x34, 0x4C, 0x304
    SWSTART, ADON, EOC, SCAN = 1 << 30, 1 << 0, 1 << 1, 1 << 8
    REGISTERS: ClassVar[dict[str, int]] = {
        "SR": 0x00,
        "CR1": 0x04,
        "CR2": 0x08,
        "SMPR1": 0x0C,
        "SMPR2": 0x10,
        "SQR1": 0x2C,
        "SQR2": 0x30,
        "SQR3": 0x34,
        "DR": 0x4C,
        "CCR": 0x304,
    }

    def __init__(self, battery_percent: Callable[[], float]) -> None:
        """``battery_percent`` gives the charge from 0 to 100."""
        super().__init__()
        self._battery_percent = battery_percent

    def read(self, offset: int) -> int:
        """Reading DR clears EOC."""
        if offset == self.DR:
            self.values[self.SR] &= ~self.EOC
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """SWSTART converts and clears itself; flags are cleared by zeros."""
        if offset == self.SR:
            self.values[self.SR] &= value
        elif offset != self.DR:
            self.values[offset] = value & ~self.SWSTART if offset == self.CR2 else value
            if offset == self.CR2 and value & self.SWSTART and value & self.ADON:
                self._convert()

    def _convert(self) -> None:
        """0 … 4095 for 0 … 100 %, rounded to nearest; of a longer sequence the last one stays."""
        is_battery = not self.values[self.SQR3] & 0x1F
        if self.values[self.CR1] & self.SCAN and self.values[self.SQR1] >> 20 & 0xF:
            is_battery = False
        charge = int(self._battery_percent() * 40.95 + 0.5) if is_battery else 0
        self.values[self.DR] = max(0, min(4095, charge))
        self.values[self.SR] |= self.EOC


class Rng(Peripheral):
    """Random words from a seed."""

    BASE = 0x50060800
    DR = 0x08
    REGISTERS: ClassVar[dict[str, int]] = {"CR": 0x00, "SR": 0x04, "DR": 0x08}

    def __init__(self, seed: int) -> None:
        """The sequence goes on over resets, as entropy does."""
        super().__init__()
        self._random = random.Random(f"rng {seed}")

    def read(self, offset: int) -> int:
        """DRDY is always set."""
        if offset == self.DR:
            return self._random.getrandbits(32)
        return 1 if offset == 0x04 else self.values[offset]
