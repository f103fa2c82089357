"""A board that can't go on starts over by itself, and says why."""

from __future__ import annotations

import pytest

from simulator.devices.peripherals import Iwdg, Rcc
from simulator.machines.protocol import StopReason

from .port_machine import BOARDS, TICK, Command, PortMachine, names

POWER_ON, PIN, SOFTWARE, WATCHDOG, FAULT, BROWN_OUT, UNKNOWN = 0, 1, 2, 3, 4, 5, 255
BUS_FAULT, USAGE_FAULT, MAIN_RETURNED, CLOCK_FAILED, DMA_FAILED = 5, 6, 0x80, 0x81, 0x83

on_each_board = pytest.mark.parametrize("machine", names(BOARDS, flow=False), indirect=True)


def comes_back(machine: PortMachine) -> bool:
    """Once, within the time of the watchdog, and then it sleeps in its main loop again."""
    reasons = machine.run_for(TICK)
    for _ in range(70):
        if StopReason.RESET in reasons:
            break
        reasons = machine.run_for(TICK)
    machine.boot()
    return reasons.count(StopReason.RESET) == 1


@on_each_board
def test_power_on_is_told_from_a_reset_by_pin_and_by_software(machine: PortMachine) -> None:
    assert machine.report == (POWER_ON, 0, 0)
    machine.power_on(keep_sram=True)
    machine.boot()
    assert machine.report == (PIN, 0, 0)
    machine.give(Command.RESET)
    assert comes_back(machine)
    assert machine.report == (SOFTWARE, 0, 0)
    machine.power_on()
    machine.boot()
    assert machine.report == (POWER_ON, 0, 0)


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (Rcc.BROWN_OUT | Rcc.PIN, BROWN_OUT),
        (1 << 30 | Rcc.PIN, WATCHDOG),  # the window watchdog
        (0, UNKNOWN),
    ],
)
def test_other_causes_are_read_from_the_flags(
    unbooted: PortMachine, flags: int, cause: int
) -> None:
    unbooted.clocks._reset_flags = flags
    unbooted.boot()
    assert unbooted.report == (cause, 0, 0)


@on_each_board
@pytest.mark.parametrize(
    ("command", "code", "place"),
    [
        (Command.UNDEFINED, USAGE_FAULT, "main"),
        (Command.READ_NOWHERE, BUS_FAULT, "peek"),
    ],
)
def test_a_fault_tells_what_it_was_and_where(
    machine: PortMachine, command: Command, code: int, place: str
) -> None:
    machine.give(command)
    assert comes_back(machine)
    cause, fault, pc = machine.report
    assert (cause, fault) == (FAULT, code)
    assert machine.last_fault is not None
    assert pc == machine.last_fault.pc
    assert machine.image.function_at(pc) in (place, "main", "obey")


@on_each_board
def test_a_jump_to_nowhere_tells_where_to(machine: PortMachine) -> None:
    machine.give(Command.JUMP_NOWHERE)
    assert comes_back(machine)
    assert machine.report == (FAULT, BUS_FAULT, 0x30000000)


@on_each_board
def test_a_stack_overflow_leaves_no_frame_but_a_reason(machine: PortMachine) -> None:
    machine.give(Command.OVERFLOW)
    assert comes_back(machine)
    assert machine.report == (FAULT, BUS_FAULT, 0)


@on_each_board
def test_a_main_that_returns_starts_over(machine: PortMachine) -> None:
    machine.give(Command.RETURN)
    assert comes_back(machine)
    cause, code, pc = machine.report
    assert (cause, code) == (FAULT, MAIN_RETURNED)
    assert machine.image.function_at(pc) == "Reset_Handler"


@on_each_board
def test_the_watchdog_ends_an_endless_loop(machine: PortMachine) -> None:
    watchdog = machine.watchdog
    seconds = (watchdog.values[Iwdg.RLR] + 1) * (4 << watchdog.values[Iwdg.PR]) / Iwdg.HERTZ
    assert seconds * 32 / 47 > 16, "of the fastest oscillator"
    assert seconds == 26
    assert machine.clock.now < watchdog.expires_at < machine.clock.now + 26 * 10**9
    watchdog.expires_at = machine.clock.now + 10**9  # 26 seconds take a while to emulate
    machine.give(Command.SPIN)
    assert comes_back(machine)
    assert machine.report == (WATCHDOG, 0, 0)


def test_a_report_is_given_once(machine: PortMachine) -> None:
    machine.give(Command.UNDEFINED)
    assert comes_back(machine)
    assert machine.report[0] == FAULT
    machine.give(Command.RESET)
    assert comes_back(machine)
    assert machine.report == (SOFTWARE, 0, 0)


def test_a_record_that_a_power_cut_left_is_not_believed(machine: PortMachine) -> None:
    machine.give(Command.UNDEFINED)
    machine.world_milliseconds += TICK
    while machine.run(0.01) is not StopReason.RESET:
        pass
    start = machine.image.address_of("__bss_end")
    kept = machine.read_memory(start, machine.image.address_of("__noinit_end") - start)
    machine.power_on()
    machine.write_sram(start, kept)
    machine.boot()
    assert machine.report == (POWER_ON, 0, 0)
    machine.power_on(keep_sram=True)
    machine.write_sram(start, kept[:8] + bytes([kept[8] ^ 1]) + kept[9:])
    machine.clocks._reset_flags = Rcc.SOFTWARE
    machine.boot()
    assert machine.report == (SOFTWARE, 0, 0)


def test_a_fault_within_the_handler_is_left_to_the_watchdog(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core locks up: it executes nothing any more."""
    handler = machine.image.address_of("tf_cortex_m_take_fault")
    machine.flash[handler - 0x08000000 : handler - 0x08000000 + 2] = b"\x00\xde"
    machine.flush_translations()
    machine.give(Command.UNDEFINED)
    before = machine.clock.now
    machine.run_for(TICK)
    clocks = machine.clock.clocks
    assert machine.run_for(20_000) == [StopReason.IDLE]
    assert machine.clock.clocks == clocks
    assert StopReason.RESET in machine.run_for(10_000)
    machine.boot()
    assert 26 <= (machine.clock.now - before) / 1e9 < 32
    assert machine.report == (WATCHDOG, 0, 0)


def test_the_watchdog_is_refreshed_by_a_main_loop_that_goes_round(machine: PortMachine) -> None:
    for _ in range(240):
        assert machine.run_for(TICK) == [StopReason.IDLE]
    assert machine.clock.now > 100 * 10**9


@on_each_board
def test_sectors_that_are_erased_one_after_the_other_are_progress(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the watchdog's oscillator at its fastest; one that fails is none."""
    monkeypatch.setattr(Iwdg, "HERTZ", 47_000)
    before = machine.clock.now
    machine.give(Command.ERASE_OFTEN, 15)
    assert machine.run_for(TICK) == [StopReason.IDLE]
    assert machine.clock.now - before > 30 * 10**9
    assert machine.word("last_result") == 0


def test_a_clock_that_stands_still_is_no_progress(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No timer would ever end: the deadline of a task, the patience with a broker."""
    monkeypatch.setattr(machine, "_timer_time", lambda: 0)
    timer = next(one for one in machine._peripherals if one.BASE == 0x40000000)
    monkeypatch.setattr(timer, "_time", lambda: timer._start)
    reasons = [reason for _ in range(60) for reason in machine.run_for(TICK)]
    assert StopReason.RESET in reasons


def test_a_clock_that_never_gets_ready_is_tried_again_and_again(
    unbooted: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = unbooted.clocks.read
    ready = 1 << 25
    monkeypatch.setattr(
        unbooted.clocks,
        "read",
        lambda offset: read(offset) & ~ready if offset == Rcc.CR else read(offset),
    )
    for _ in range(3):
        assert unbooted.run(10_000) is StopReason.RESET
    monkeypatch.undo()
    unbooted.boot()
    cause, code, pc = unbooted.report
    assert (cause, code) == (FAULT, CLOCK_FAILED)
    assert unbooted.image.function_at(pc).partition(".")[0] in ("need", "tf_stm32_clocks_start")


def test_a_stream_that_never_stops_is_tried_again_and_again(
    unbooted: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, control = unbooted.dma.read, unbooted.dma._offset(2, 0)
    monkeypatch.setattr(
        unbooted.dma, "read", lambda offset: read(offset) | (1 if offset == control else 0)
    )
    assert unbooted.run(10_000) is StopReason.RESET
    monkeypatch.undo()
    unbooted.boot()
    assert unbooted.report[:2] == (FAULT, DMA_FAILED)
