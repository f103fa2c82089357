"""Clocks, timer and converter: what the firmware sets decides what they do."""

from __future__ import annotations

import pytest

from simulator.clock import SECOND
from simulator.devices.core_clock import CoreClock
from simulator.devices.interrupts import SystemControl
from simulator.devices.peripherals import Adc1, Rcc, Tim2


def test_buses_and_timers_are_divided_as_the_firmware_says() -> None:
    seen: list[int] = []
    clocks = Rcc(lambda: seen.append(1))
    assert (clocks.core_hz, clocks.usart1_hz, clocks.apb1_timer_hz) == (16_000_000,) * 3
    clocks.write(Rcc.PLLCFGR, 16 | 336 << 6 | 7 << 24)
    clocks.write(Rcc.CFGR, 6 << 10 | 5 << 13 | 2)
    assert clocks.core_hz == 168_000_000
    assert clocks.usart1_hz == clocks.apb1_timer_hz == 42_000_000
    clocks.write(Rcc.DCKCFGR1, Rcc.TIMPRE)
    clocks.write(Rcc.DCKCFGR2, 2)
    assert clocks.apb1_timer_hz == 84_000_000
    assert clocks.usart1_hz == 16_000_000
    assert seen


def test_the_timer_counts_what_its_prescaler_leaves() -> None:
    time = [0]
    timer = Tim2(lambda: time[0], lambda: 42_000_000)
    timer.write(Tim2.PSC, 41_999)
    timer.write(Tim2.EGR, 1)
    timer.write(Tim2.CR1, 1)
    time[0] += 3 * SECOND // 2
    assert timer.read(Tim2.CNT) == 1500
    timer.write(Tim2.PSC, 20_999)
    time[0] += SECOND
    assert timer.read(Tim2.CNT) == 1500 + 2000
    timer.write(Tim2.CR1, 0)
    time[0] += SECOND
    assert timer.read(Tim2.CNT) == 3500


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 2048),
        ({Adc1.SQR3: 5}, 0),  # another channel
        ({Adc1.CR1: Adc1.SCAN, Adc1.SQR1: 3 << 20}, 0),  # the last of a sequence
        ({Adc1.CR2: 0}, None),  # off
    ],
)
def test_the_converter_converts_what_it_is_set_to(
    changed: dict[int, int], expected: int | None
) -> None:
    converter = Adc1(lambda: 50.0)
    converter.write(Adc1.CR2, Adc1.ADON)
    for register, value in changed.items():
        converter.write(register, value)
    converter.write(Adc1.CR2, converter.values[Adc1.CR2] | Adc1.SWSTART)
    assert bool(converter.read(Adc1.SR) & Adc1.EOC) == (expected is not None)
    if expected is not None:
        assert converter.read(Adc1.DR) == expected
        assert not converter.read(Adc1.SR) & Adc1.EOC


class Core:
    """A system control block with one interrupt, line 33."""

    def __init__(self) -> None:
        self.clock = CoreClock(8_000_000)
        self.system = SystemControl("cortex-m4", self.clock, lambda: 8_000_000, lambda: None)
        self.is_asserted = False
        self.raised = self.system.interrupts.connect(33, lambda: self.is_asserted)


def test_only_enabled_interrupts_wake_the_core_up() -> None:
    core = Core()
    core.is_asserted = True
    core.raised()
    assert not core.system.wakes_up
    core.system.write(0x104, 2)
    assert core.system.wakes_up
    assert core.system.read(0x204) == 2
    core.system.write(0x184, 2)
    assert not core.system.wakes_up


def test_an_interrupt_stays_pending_until_flag_and_pending_bit_are_cleared() -> None:
    core = Core()
    core.system.write(0x104, 2)
    core.is_asserted = True
    core.raised()
    core.system.write(0x284, 2)
    assert core.system.wakes_up, "its flag is still set"
    core.is_asserted = False
    assert core.system.wakes_up, "it was latched"
    core.system.write(0x284, 2)
    assert not core.system.wakes_up


def test_systick_is_pending_after_its_time_and_until_it_is_cleared() -> None:
    core = Core()
    core.system.write(SystemControl.SYST_RVR, 999)  # 1 MHz: a millisecond
    core.system.write(SystemControl.SYST_CVR, 0)
    core.system.write(SystemControl.SYST_CSR, 3)
    core.clock.pass_time(999_999)
    core.system.bring_up_to_date()
    assert not core.system.wakes_up
    core.clock.pass_time(1)
    core.system.bring_up_to_date()
    assert core.system.wakes_up
    assert core.system.next_tick == 2_000_000
    core.system.write(SystemControl.SYST_CSR, 0)
    assert core.system.wakes_up
    core.system.write(SystemControl.ICSR, SystemControl.PEND_TICK_CLEAR)
    assert not core.system.wakes_up
