"""The stm32 port sets every register that it relies on, and waits for none of them for ever."""

from __future__ import annotations

import random

import pytest

from simulator.devices.flash_controller import FlashController
from simulator.devices.peripherals import Adc1, Peripheral, Rcc, Tim2
from simulator.devices.serial_port import Dma2, Usart
from simulator.machines.protocol import StopReason

from .port_machine import BOARDS, FLASH_FAILED, TICK, PortMachine, names, noise

BATTERY_UNKNOWN = 255
on_each_board = pytest.mark.parametrize("machine", names(BOARDS, flow=False), indirect=True)
unbooted_on_each_board = pytest.mark.parametrize(
    "unbooted", names(BOARDS, flow=False), indirect=True
)


def scrambled(peripheral: Peripheral, seed: int) -> dict[int, int]:
    """What a boot loader might have left in its registers."""
    draw = random.Random(f"{peripheral.BASE} {seed}")
    return {offset: draw.getrandbits(32) for offset in peripheral.values}


@unbooted_on_each_board
@pytest.mark.parametrize("seed", range(5))
def test_what_registers_held_before_makes_no_difference(unbooted: PortMachine, seed: int) -> None:
    machine = unbooted
    for kind, kept in {
        Adc1: {Adc1.SR: 0, Adc1.DR: 0},
        Tim2: {Tim2.CR1: 0},
        Usart: {},
        Dma2: {Dma2.LISR: 0x3D << 16, Dma2.HISR: 0x3D << 22},
    }.items():
        peripheral = machine.peripheral(kind)
        peripheral.values.update(scrambled(peripheral, seed))
        peripheral.values.update(kept)
        if kind is Dma2:  # streams that are on would go on
            peripheral.values.update({peripheral._offset(stream, 0): 0 for stream in range(8)})
    machine.clocks.values |= {Rcc.CFGR: 0x9400, Rcc.PLLCFGR: 0x27405011}
    if machine.usart.version == 2:
        machine.clocks.values |= {Rcc.DCKCFGR1: 1 << 24, Rcc.DCKCFGR2: 0x2}
    machine.boot()
    before, counted = machine.clock.now, machine.call("milliseconds")
    for _ in range(10):  # in one go it would see a jump in its time
        machine.run_for(TICK)
    passed = (machine.clock.now - before) / 1e6
    assert machine.call("milliseconds") - counted == pytest.approx(passed, abs=2)
    assert machine.call("battery") == 100
    assert machine.usart.baud == pytest.approx(115_200, rel=0.002)
    assert machine.clocks.core_hz == machine.board.clock_hz
    machine.receive(noise(5000))
    machine.settle()
    assert machine.received == noise(5000)


def test_a_converter_that_never_answers_makes_the_battery_unknown(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = machine.peripheral(Adc1)
    monkeypatch.setattr(converter, "_convert", lambda: None)
    assert machine.call("battery", max_milliseconds=100) == BATTERY_UNKNOWN
    monkeypatch.undo()
    assert machine.call("battery") == 100


def test_a_random_generator_that_never_answers_is_replaced_by_the_clock(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = next(one for one in machine._peripherals if one.BASE == 0x50060800)
    monkeypatch.setattr(generator, "read", lambda offset: 0)
    first = machine.call("entropy", max_milliseconds=100)
    machine.run_for(TICK)
    assert machine.call("entropy") != first


@on_each_board
@pytest.mark.parametrize("operation", ["erase", "program"])
def test_a_flash_that_stays_busy_fails(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Within the limit that the watchdog allows, where the code doesn't lie in that flash."""
    controller, ended = machine.flash_controller, []
    read, busy = controller.read, 1 << 16

    def stays_busy(offset: int) -> int:
        if offset == FlashController.SR:
            machine.world_milliseconds += 1  # else it would take a minute to emulate
            ended.append(machine.clock.now)
            return busy
        return read(offset)

    monkeypatch.setattr(controller, "read", stays_busy)
    last = len(machine.board.flash.sectors) - 1
    arguments = (last,) if operation == "erase" else (machine.board.flash.sector_address(last), 1)
    assert machine.call(operation, *arguments) == FLASH_FAILED
    assert 4_000 < len(ended) < 15_000
    assert machine.run_for(1) == [StopReason.IDLE], "the watchdog didn't bite"


def test_a_transmission_that_never_ends_does_not_hold_up_the_end_of_the_connection(
    machine: PortMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.dma, "transmission_ended", lambda: None)
    machine.call("send", 200)
    machine.call("hang_up", max_milliseconds=100)
    assert not machine.data_terminal_ready
