"""Faults enter the firmware's handler as on a core of Armv7-M; the watchdog ends the rest."""

from collections.abc import Callable

import pytest

from simulator.devices.interrupts import HARD_FAULT, SystemControl
from simulator.devices.peripherals import Iwdg, Rcc
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine

from ..conftest import WorldClock

SLICE = 200
UNDEFINED, BUS_DATA, BUS_ADDRESS_VALID, STACKING = 1 << 16, 1 << 9, 1 << 15, 1 << 12
CSR, WATCHDOG = 0x40023874, 0x40003000


def word(machine: UnicornMachine, symbol: str) -> int:
    address = machine.image.address_of(symbol)
    return int.from_bytes(machine.read_memory(address, 4), "little")


def jump(machine: UnicornMachine, function: str, argument: int = 0) -> None:
    """Let the firmware go on in a function of its own."""
    from unicorn import arm_const

    machine.run(SLICE)
    machine._is_asleep = False
    machine.write_register(arm_const.UC_ARM_REG_R0, argument)
    machine.pc = machine.image.address_of(function)


def test_the_handler_of_an_undefined_instruction_sees_where_it_was(machine: UnicornMachine) -> None:
    jump(machine, "undefined")
    stack = machine.stack_pointer
    assert machine.run(SLICE) is StopReason.IDLE
    assert word(machine, "exception") == HARD_FAULT
    frame = word(machine, "fault_frame")
    assert frame == (stack - 32) & ~7
    pc = int.from_bytes(machine.read_memory(frame + 24, 4), "little")
    start, size = machine.image.symbols["undefined"]
    assert start <= pc < start + size
    assert machine.last_fault is not None
    assert machine.last_fault.pc == pc
    assert machine.call("peek", 0xE000ED28) == UNDEFINED


def test_an_access_outside_the_board_leaves_its_address(machine: UnicornMachine) -> None:
    jump(machine, "peek", 0x30000004)
    assert machine.run(SLICE) is StopReason.IDLE
    assert machine.call("peek", 0xE000ED28) == BUS_DATA | BUS_ADDRESS_VALID
    assert machine.call("peek", 0xE000ED38) == 0x30000004
    machine.call("poke", 0xE000ED28, 0xFFFFFFFF)
    assert machine.call("peek", 0xE000ED28) == 0, "cleared by ones"


def test_a_stack_that_ran_over_holds_no_frame(machine: UnicornMachine) -> None:
    jump(machine, "deep", 5000)
    assert machine.run(SLICE) is StopReason.IDLE
    assert machine.call("peek", 0xE000ED28) & STACKING
    assert word(machine, "exception") == HARD_FAULT


def test_what_silicon_would_not_notice_stops_the_machine(machine: UnicornMachine) -> None:
    jump(machine, "peek", 0x40000400)  # TIM3: not on our boards' list
    assert machine.run(SLICE) is StopReason.FAULT
    assert "0x40000400" in str(machine.fault)
    assert machine.run(SLICE) is StopReason.FAULT


@pytest.mark.parametrize("handler", [b"\0\0\0\0", b"\x01\0\0\x20"])
def test_without_a_handler_and_a_watchdog_a_fault_is_the_end(
    machine: UnicornMachine, handler: bytes
) -> None:
    machine.write_flash(machine.board.flash.address + 12, handler)
    jump(machine, "undefined")
    assert machine.run(SLICE) is StopReason.FAULT
    assert "undefined" in str(machine.fault)
    machine.power_on()
    assert machine.run(SLICE) is StopReason.IDLE


def test_a_core_that_locked_up_in_its_handler_is_reset_by_the_watchdog(
    machine: UnicornMachine, world: WorldClock
) -> None:
    machine.run(SLICE)
    machine.write_sram(machine.image.address_of("command"), (3).to_bytes(4, "little"))
    machine.call("poke", WATCHDOG, Iwdg.START)
    jump(machine, "undefined")
    assert machine.run(SLICE) is StopReason.IDLE
    clocks = machine.clock.clocks
    world.now += 500
    assert machine.run(SLICE) is StopReason.IDLE
    assert machine.clock.clocks == clocks
    world.now += 20
    assert machine.run(SLICE) is StopReason.RESET, "after 4,096 clocks of 8 kHz"
    assert machine.call("peek", CSR) & Rcc.WATCHDOG


def test_the_watchdog_counts_through_work_and_sleep_until_it_is_refreshed(
    make_machine: Callable[..., UnicornMachine], world: WorldClock
) -> None:
    machine = make_machine()
    machine.run(SLICE)
    machine.call("poke", WATCHDOG, Iwdg.START)
    for _ in range(5):
        world.now += 400
        assert machine.run(SLICE) is StopReason.IDLE
        machine.call("poke", WATCHDOG, Iwdg.REFRESH)
    jump(machine, "spin")
    spent = 0
    while (reason := machine.run(100)) is StopReason.SLICE_OVER:
        spent += 100
    assert reason is StopReason.RESET
    assert spent == 500


def test_the_watchdog_takes_its_time_from_prescaler_and_reload(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    machine.call("poke", WATCHDOG + 4, 6)
    assert machine.call("peek", WATCHDOG + 4) == 0, "locked"
    machine.call("poke", WATCHDOG, Iwdg.UNLOCK)
    machine.call("poke", WATCHDOG + 4, 6)
    machine.call("poke", WATCHDOG + 8, 124)
    assert machine.call("peek", WATCHDOG + 12) == 3, "on their way"
    machine.clock.pass_time(200_000)
    assert machine.call("peek", WATCHDOG + 12) == 0
    machine.call("poke", WATCHDOG, Iwdg.START)
    left = machine.watchdog.expires_at - machine.clock.now
    assert left == pytest.approx(10**9, rel=0.001)


def test_reset_flags_add_up_until_they_are_removed(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    assert machine.call("peek", CSR) == Rcc.POWER_ON | Rcc.BROWN_OUT | Rcc.PIN
    machine.power_on(keep_sram=True)
    machine.run(SLICE)
    assert machine.call("peek", CSR) == Rcc.POWER_ON | Rcc.BROWN_OUT | Rcc.PIN
    machine.call("poke", CSR, Rcc.REMOVE_FLAGS)
    assert machine.call("peek", CSR) == 0
    with pytest.raises(Exception, match="reset"):
        machine.call("poke", SystemControl.BASE + SystemControl.AIRCR, 0x05FA0004)
    machine.run(SLICE)
    assert machine.call("peek", CSR) == Rcc.SOFTWARE | Rcc.PIN
