"""The peripherals of docs/specification/boards.md, one small class each.

A peripheral sees aligned 32-bit registers as (offset, value) and knows nothing of Unicorn;
what it does to the rest of the machine it does through callables that it is given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import ClassVar

from simulator.clock import Milliseconds


class Peripheral:
    """A block of registers; those not in ``REGISTERS`` fault."""

    BASE: ClassVar[int]
    SIZE: ClassVar[int] = 0x400
    READS_HAVE_EFFECTS: ClassVar[bool] = False
    """A load must not be repeated, so no slice ends at one."""
    REGISTERS: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        """All registers zero."""
        self.values: dict[int, int] = dict.fromkeys(self.REGISTERS.values(), 0)

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
            self.values[offset] = 0


class Rcc(Peripheral):
    """Clock control: reads give what was written, with every ready bit set."""

    BASE = 0x40023800
    CR, PLLCFGR, CFGR, CSR = 0x00, 0x04, 0x08, 0x74
    INTERNAL_HZ, EXTERNAL_HZ = 16_000_000, 8_000_000

    @property
    def core_hz(self) -> float:
        """Clock of core and AHB as CFGR and PLLCFGR set it up (RM0090, 7.3.2 and 7.3.3)."""
        oscillators = self.INTERNAL_HZ, self.EXTERNAL_HZ
        pll, switch = self.values.get(self.PLLCFGR, 0x24003010), self.values.get(self.CFGR, 0)
        if switch & 3 == 2:
            source = oscillators[pll >> 22 & 1] / max(1, pll & 0x3F)
            hertz = source * (pll >> 6 & 0x1FF) / (2 * ((pll >> 16 & 3) + 1))
        else:
            hertz = oscillators[switch & 1]
        divider = switch >> 4 & 0xF
        return hertz / (1, 2, 4, 8, 16, 64, 128, 256, 512)[max(0, divider - 7)]

    def reset(self) -> None:
        """Internal oscillator."""
        self.values.clear()

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
            value |= (value & 1) << 1
        return value


class Usart(Peripheral):
    """USART1. Version 1 (F4) has SR and DR, version 2 (F7) ISR, ICR, RDR and TDR."""

    BASE = 0x40011000
    TXE, TC, RXNE = 1 << 7, 1 << 6, 1 << 5
    DMAR, DMAT = 1 << 6, 1 << 7
    V1: ClassVar[dict[str, int]] = {
        "SR": 0x00,
        "DR": 0x04,
        "BRR": 0x08,
        "CR1": 0x0C,
        "CR2": 0x10,
        "CR3": 0x14,
        "GTPR": 0x18,
    }
    V2: ClassVar[dict[str, int]] = {
        "CR1": 0x00,
        "CR2": 0x04,
        "CR3": 0x08,
        "BRR": 0x0C,
        "GTPR": 0x10,
        "RTOR": 0x14,
        "RQR": 0x18,
        "ISR": 0x1C,
        "ICR": 0x20,
        "RDR": 0x24,
        "TDR": 0x28,
    }

    def __init__(self, version: int, transmit: Callable[[bytes], None]) -> None:
        """``transmit`` is given what the firmware writes to the data register."""
        self.registers = self.V1 if version == 1 else self.V2
        self.version = version
        self._transmit = transmit
        self.values = dict.fromkeys(self.registers.values(), 0)

    @property
    def data_address(self) -> int:
        """Bus address of the receive data register, as a DMA stream's PAR names it."""
        return self.BASE + self.registers["DR" if self.version == 1 else "RDR"]

    @property
    def enabled(self) -> bool:
        """UE: bit 13 of CR1 in version 1, bit 0 in version 2."""
        return bool(self.values[self.registers["CR1"]] & (1 << 13 if self.version == 1 else 1))

    @property
    def receives_by_dma(self) -> bool:
        """Receiver on (RE) and DMAR set."""
        receiver = self.values[self.registers["CR1"]] & 1 << 2
        return bool(self.enabled and receiver and self.values[self.registers["CR3"]] & self.DMAR)

    @property
    def transmits_by_dma(self) -> bool:
        """Transmitter on (TE) and DMAT set."""
        transmitter = self.values[self.registers["CR1"]] & 1 << 3
        return bool(self.enabled and transmitter and self.values[self.registers["CR3"]] & self.DMAT)

    def read(self, offset: int) -> int:
        """The transmitter is always ready; received bytes only come by DMA."""
        if offset == self.registers["SR" if self.version == 1 else "ISR"]:
            ready = self.TXE | self.TC
            if self.version == 2:  # TEACK and REACK follow TE and RE
                control = self.values[self.registers["CR1"]]
                ready |= (control >> 3 & 1) << 21 | (control >> 2 & 1) << 22
            return ready
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """A byte written to the data register goes out at once."""
        if offset == self.registers["DR" if self.version == 1 else "TDR"]:
            self._transmit(bytes([value & 0xFF]))
        elif offset not in (self.registers.get("SR"), self.registers.get("ISR")):
            self.values[offset] = value


class Dma2(Peripheral):
    """DMA2: stream 2 fills the receive ring, stream 7 sends a buffer."""

    BASE = 0x40026400
    LISR, HISR, LIFCR, HIFCR = 0x00, 0x04, 0x08, 0x0C
    EN, CIRC, MINC = 1 << 0, 1 << 8, 1 << 10
    TCIF2, HTIF2, TCIF7 = 1 << 21, 1 << 20, 1 << 27
    RX, TX = 2, 7
    CHANNEL = 4

    def __init__(
        self,
        usart: Usart,
        load: Callable[[int, int], bytes],
        store: Callable[[int, bytes], None],
        transmit: Callable[[bytes], None],
    ) -> None:
        """``load`` and ``store`` move bytes from and to SRAM and fault outside of it."""
        self.values = dict.fromkeys((self.LISR, self.HISR, self.LIFCR, self.HIFCR), 0)
        for stream in range(8):
            for register in range(6):
                self.values[self._offset(stream, register)] = 0
        self._usart, self._load, self._store, self._transmit = usart, load, store, transmit
        self._ring_bytes = 0
        self.looked = True
        """Whether the firmware has read the ring's position since bytes last came."""

    def read(self, offset: int) -> int:
        """Reading stream 2's NDTR is the firmware's look at the ring."""
        if offset == self._offset(self.RX, 1):
            self.looked = True
        return self.values[offset]

    @staticmethod
    def _offset(stream: int, register: int) -> int:
        """Registers of a stream: 0 CR, 1 NDTR, 2 PAR, 3 M0AR, 4 M1AR, 5 FCR."""
        return 0x10 + 0x18 * stream + 4 * register

    def _stream(self, stream: int, register: int) -> int:
        return self.values[self._offset(stream, register)]

    def write(self, offset: int, value: int) -> None:
        """Clearing flags, and enabling a stream, act at once."""
        if offset == self.LIFCR:
            self.values[self.LISR] &= ~value
        elif offset == self.HIFCR:
            self.values[self.HISR] &= ~value
        elif offset not in (self.LISR, self.HISR):
            before = self.values[offset]
            self.values[offset] = value
            if value & self.EN and not before & self.EN:
                if offset == self._offset(self.RX, 0):
                    self.looked = True
                    self._ring_bytes = self._stream(self.RX, 1)
                elif offset == self._offset(self.TX, 0):
                    self._send()
                    self.values[offset] = value & ~self.EN

    def _send(self) -> None:
        """Stream 7: the whole buffer goes out, then the transfer-complete flag."""
        control = self._stream(self.TX, 0)
        if control >> 25 & 7 == self.CHANNEL and self._usart.transmits_by_dma:
            self._transmit(self._load(self._stream(self.TX, 3), self._stream(self.TX, 1)))
        self.values[self._offset(self.TX, 1)] = 0
        self.values[self.HISR] |= self.TCIF7

    @property
    def ready_to_receive(self) -> bool:
        """Whether bytes on the line have a ring to go to."""
        control = self._stream(self.RX, 0)
        return bool(
            control & self.EN
            and control & self.CIRC
            and control >> 25 & 7 == self.CHANNEL
            and self._ring_bytes
            and self._usart.receives_by_dma
        )

    def receive(self, data: bytes) -> int:
        """Bytes from the line go into the ring and lower NDTR; returns how many were taken."""
        if not self.ready_to_receive:
            return 0
        self.looked = False
        size, remaining = self._ring_bytes, self._stream(self.RX, 1)
        base = self._stream(self.RX, 3)
        taken = 0
        while taken < len(data):
            position = size - remaining
            part = data[taken : taken + remaining]
            self._store(base + position, part)
            taken += len(part)
            if 2 * position < size <= 2 * (position + len(part)):
                self.values[self.LISR] |= self.HTIF2
            remaining -= len(part)
            if remaining == 0:
                remaining = size
                self.values[self.LISR] |= self.TCIF2
        self.values[self._offset(self.RX, 1)] = remaining
        return taken


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
    """Port A: the serial line's transmitter on some boards."""

    BASE = 0x40020000


class GpioD(Gpio):
    """Port D: external flash."""

    BASE = 0x40020C00


class GpioE(Gpio):
    """Port E: external flash."""

    BASE = 0x40021000


class GpioB(Gpio):
    """Port B: DTR (output) and DCD (input) of the modem; PB0 and PB1 unless the board says so."""

    BASE = 0x40020400

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
    """A free running 32-bit counter of milliseconds."""

    BASE = 0x40000000
    CNT = 0x24
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

    def __init__(self, clock: Milliseconds) -> None:
        """Counts from zero at power on."""
        super().__init__()
        self._clock = clock
        self._start = clock()

    def read(self, offset: int) -> int:
        """CNT follows the clock once the counter is enabled (CEN)."""
        if offset == self.CNT:
            return (self._clock() - self._start) & 0xFFFFFFFF if self.values[0] & 1 else 0
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """Enabling the counter, or writing it, sets where it counts from."""
        if offset == self.CNT:
            self._start = self._clock() - value
        else:
            if offset == 0 and value & 1 and not self.values[0] & 1:
                self._start = self._clock()
            self.values[offset] = value


class Adc1(Peripheral):
    """A conversion is done as soon as it is asked for; the only channel is the battery."""

    BASE = 0x40012000
    SR, CR2, DR = 0x00, 0x08, 0x4C
    SWSTART, EOC = 1 << 30, 1 << 1
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
    }

    def __init__(self, battery_percent: Callable[[], float]) -> None:
        """``battery_percent`` gives the charge from 0 to 100."""
        super().__init__()
        self._battery_percent = battery_percent

    def read(self, offset: int) -> int:
        """DR: 0 … 4095 for 0 … 100 %, rounded to nearest."""
        if offset == self.SR:
            return self.EOC
        if offset == self.DR:
            return max(0, min(4095, int(self._battery_percent() * 40.95 + 0.5)))
        return self.values[offset]

    def write(self, offset: int, value: int) -> None:
        """SWSTART clears itself."""
        self.values[offset] = value & ~self.SWSTART if offset == self.CR2 else value


class Rng(Peripheral):
    """Random words from a seed."""

    BASE = 0x50060800
    READS_HAVE_EFFECTS = True
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


class SystemControl(Peripheral):
    """NVIC and SCB: registers that hold what is written; AIRCR takes reset requests."""

    BASE = 0xE000E000
    SIZE = 0x1000
    SYST_CSR, SYST_RVR = 0x10, 0x14
    CPUID, VTOR, AIRCR, CPACR = 0xD00, 0xD08, 0xD0C, 0xD88
    VECTKEY, SYSRESETREQ = 0x05FA, 1 << 2
    CPUIDS: ClassVar[dict[str, int]] = {"cortex-m4": 0x410FC241, "cortex-m7": 0x411FC271}

    def __init__(self, cpu: str, request_reset: Callable[[], None]) -> None:
        """``request_reset`` is called on a SYSRESETREQ with the right key."""
        super().__init__()
        self._cpuid = self.CPUIDS.get(cpu, 0)
        self._request_reset = request_reset

    def has(self, offset: int) -> bool:
        """All of its words."""
        return offset < self.SIZE and offset % 4 == 0

    def read(self, offset: int) -> int:
        """Set/clear register pairs read the state; nothing is ever pending."""
        if offset == self.CPUID:
            return self._cpuid
        if offset == self.AIRCR:
            return 0xFA050000
        if 0x180 <= offset < 0x200:  # ICERn reads as ISERn
            offset -= 0x80
        return self.values.get(offset, 0)

    def tick_milliseconds(self, core_hz: float) -> float:
        """When SysTick will wake a core that waits; infinity where it is off."""
        control = self.values.get(self.SYST_CSR, 0)
        if control & 3 != 3:
            return math.inf
        hertz = core_hz if control & 4 else core_hz / 8
        return (self.values.get(self.SYST_RVR, 0) + 1) * 1000.0 / hertz

    def write(self, offset: int, value: int) -> None:
        """Enable bits are kept; pending bits have nothing to clear."""
        if offset == self.AIRCR:
            if value >> 16 == self.VECTKEY and value & self.SYSRESETREQ:
                self._request_reset()
        elif 0x100 <= offset < 0x180:
            self.values[offset] = self.values.get(offset, 0) | value
        elif 0x180 <= offset < 0x200:
            self.values[offset - 0x80] = self.values.get(offset - 0x80, 0) & ~value
        elif not 0x200 <= offset < 0x300:
            self.values[offset] = value
