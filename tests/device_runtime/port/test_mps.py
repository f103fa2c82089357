"""The mps port in QEMU: its line, its flash, and why it starts over."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codegen.firmware.boards import load_board
from simulator.clock import Milliseconds, host_milliseconds
from simulator.devices.flash_operations import PowerCut
from simulator.machines.elf_image import ElfImage
from simulator.machines.protocol import StopReason
from simulator.machines.qemu.debugger import PC
from simulator.machines.qemu.machine import FlashContent, QemuMachine
from tests.patience import wait_until
from tests.simulator.conftest import WorldClock, skip_without

from .port_machine import OK, TICK, Command, build, noise

POWER_ON, PIN, SOFTWARE, WATCHDOG, FAULT = 0, 1, 2, 3, 4
USAGE_FAULT, MAIN_RETURNED = 6, 0x80
M0, M4, M33 = "mps2-an383", "mps2-an386", "mps2-an505"
RING = 4096
WORK_ROUNDS_PER_MS = 4000
"""About: a millisecond of the board's."""


class MpsMachine(QemuMachine):
    """The board with ``port_firmware.c``, looked into by the debugger."""

    def __init__(
        self,
        board: str,
        image: ElfImage,
        clock: Milliseconds | None = None,
        flash_content: FlashContent = (),
    ) -> None:
        self.world = WorldClock()
        super().__init__(
            board, Path(image.path), clock=clock or self.world, flash_content=flash_content
        )

    def boot(self) -> None:
        """Up to the sleep of its main loop, with a carrier."""
        self.run_for(50)
        self.set_data_carrier_detect(True)
        self.run_for(TICK)
        assert self.word("received_bytes") == 0

    def run_for(self, milliseconds: float) -> list[StopReason]:
        """Let the world's clock go on; what happened but slices that were over."""
        self.world.now += milliseconds
        reasons = [self.run(1000)]
        while reasons[-1] in (StopReason.SLICE_OVER, StopReason.RESET):
            reasons.append(self.run(1000))
        return [reason for reason in reasons if reason is not StopReason.SLICE_OVER]

    def sram(self, symbol: str, size: int) -> bytes:
        with self._halted():
            return self._debugger.read_memory(self._image.address_of(symbol), size)

    def word(self, symbol: str) -> int:
        return int.from_bytes(self.sram(symbol, 4), "little")

    def stand_before(self, function: str) -> None:
        """The idle core goes on until it is about to call that function."""
        place = self._image.address_of(function)
        self._debugger.set_breakpoint(place)
        self._debugger.go_on()
        assert self._debugger.wait(60)
        assert self._debugger.register(PC) == place
        self._debugger.clear_breakpoint(place)

    def give(self, command: Command, argument: int = 0) -> None:
        """For the next turn of the main loop."""
        with self._halted():
            for symbol, value in (("argument", argument), ("command", int(command))):
                data = value.to_bytes(4, "little").hex()
                self._debugger._ask(f"M{self._image.address_of(symbol):x},4:{data}")

    @property
    def received(self) -> bytes:
        return self.sram("received", self.word("received_bytes"))

    @property
    def report(self) -> tuple[Any, ...]:
        """Reset cause, fault code, PC of the fault."""
        return struct.unpack("<BBxxI", self.sram("report", 8))

    def comes_back(self) -> bool:
        """Once, and then it sleeps in its main loop again."""
        reasons = self.run_for(TICK)
        self.boot()
        return reasons.count(StopReason.RESET) == 1


@pytest.fixture(scope="session")
def mps_image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ElfImage]:
    made: dict[str, ElfImage] = {}

    def image(board: str) -> ElfImage:
        if board not in made:
            made[board] = build(load_board(board), tmp_path_factory.mktemp(board))
        return made[board]

    return image


@pytest.fixture(params=[M4, M33])
def machine(
    request: pytest.FixtureRequest, mps_image: Callable[[str], ElfImage]
) -> Iterator[MpsMachine]:
    skip_without("qemu")
    made = MpsMachine(request.param, mps_image(request.param))
    made.boot()
    yield made
    made.close()


def test_a_burst_of_many_rings_is_received_whole_with_all_values_of_a_byte(
    machine: MpsMachine,
) -> None:
    sent = noise(19_000) + bytes(range(256)) + b"\x10" * 99
    machine.receive(sent)
    machine.run_for(1)
    assert machine.received == sent
    assert machine.bytes_under_way == 0


def test_a_long_step_fills_the_ring_and_what_is_behind_waits(machine: MpsMachine) -> None:
    sent = noise(3 * RING)
    machine.give(Command.WORK, 400 * WORK_ROUNDS_PER_MS)
    machine.world.now += TICK
    machine.receive(sent)
    machine.run_for(0)
    assert machine.received == sent


def test_a_byte_that_comes_between_the_last_look_and_the_sleep_is_seen_at_once(
    machine: MpsMachine,
) -> None:
    machine.stand_before("tf_board_show_progress")
    machine.receive(b"!")
    wait_until(machine._uart_is_full, "the byte to be in the UART")
    machine.run_for(0)
    assert machine.received == b"!"


def test_what_it_sends_reaches_the_modem(machine: MpsMachine) -> None:
    machine.take_transmitted()
    machine.give(Command.SEND, 200)
    machine.run_for(TICK)
    assert machine.word("last_result") == 200
    assert machine.take_transmitted() == bytes(200)


def test_an_erased_sector_is_ones_and_counts_once(machine: MpsMachine) -> None:
    board = machine.board
    last = len(board.flash.sectors) - 1
    before = machine.flash_operations
    machine.give(Command.ERASE, last)
    machine.run_for(TICK)
    assert machine.word("last_result") == OK
    size = board.flash.sectors[last]
    assert machine.read_memory(board.flash.sector_address(last), size) == b"\xff" * size
    assert machine.flash_operations == before + 1


@pytest.mark.parametrize("seed", range(4))
def test_a_torn_erase_leaves_what_the_seed_says_and_the_sector_can_be_erased_again(
    mps_image: Callable[[str], ElfImage], seed: int
) -> None:
    skip_without("qemu")
    flash = load_board(M4).flash
    last = len(flash.sectors) - 1
    where, old = flash.sector_address(last), noise(flash.sectors[last])
    torn = PowerCut(lambda: None)
    torn.arm(1, seed)
    machine = MpsMachine(M4, mps_image(M4), flash_content=[(where, old)])
    try:
        machine.boot()
        machine.cut_power_at_flash_operation(1, seed)
        machine.give(Command.ERASE, last)
        assert StopReason.POWER_CUT in machine.run_for(TICK)
        assert machine.read_memory(where, len(old)) == torn.erased(old)
        assert machine.flash_operations == 1
        machine.power_on()
        machine.boot()
        machine.give(Command.ERASE, last)
        machine.run_for(TICK)
        assert machine.read_memory(where, len(old)) == b"\xff" * len(old)
        assert machine.flash_operations == 2
    finally:
        machine.close()


def test_power_on_is_told_from_a_reset_by_pin_and_by_software(machine: MpsMachine) -> None:
    assert machine.report == (POWER_ON, 0, 0)
    machine.power_on(keep_sram=True)
    machine.boot()
    assert machine.report == (PIN, 0, 0)
    machine.give(Command.RESET)
    assert machine.comes_back()
    assert machine.report == (SOFTWARE, 0, 0)
    machine.power_on()
    machine.boot()
    assert machine.report == (POWER_ON, 0, 0)


def test_a_board_that_runs_by_itself_tells_of_its_resets_and_counts_through_them(
    mps_image: Callable[[str], ElfImage],
) -> None:
    skip_without("qemu")
    machine = MpsMachine(M33, mps_image(M33), host_milliseconds)
    try:
        wait_until(lambda: machine.data_terminal_ready, "the board to dial")
        machine.give(Command.ERASE, len(machine.board.flash.sectors) - 1)
        wait_until(lambda: machine.flash_operations == 1, "the sector to be erased")
        for number in (1, 2):
            machine.give(Command.RESET)
            wait_until(lambda: machine.run(5) is StopReason.RESET, "the board to start over")
            assert machine.hang_ups == number
            wait_until(
                lambda: machine.run(5) is StopReason.IDLE and machine.data_terminal_ready,
                "the board to dial again",
            )
        assert machine.report == (SOFTWARE, 0, 0)
        assert machine.flash_operations == 1
        assert machine._process is not None
        machine._process.kill()
        wait_until(lambda: machine.run(5) is StopReason.FAULT, "its end to be seen")
        assert "QEMU" in str(machine.fault)
        assert machine.stack_high_water_bytes() == 0
        machine.power_on()
        wait_until(lambda: machine.run(5) is StopReason.IDLE and machine.data_terminal_ready, "it")
    finally:
        machine.close()


@pytest.mark.parametrize("machine", [M0, M4, M33], indirect=True)
def test_a_fault_tells_what_it_was_and_where(machine: MpsMachine) -> None:
    machine.give(Command.UNDEFINED)
    assert machine.comes_back()
    cause, code, pc = machine.report
    assert (cause, code) == (FAULT, USAGE_FAULT)
    assert machine._image.function_at(pc) in ("main", "obey")
    machine.give(Command.RETURN)
    assert machine.comes_back()
    cause, code, pc = machine.report
    assert (cause, code) == (FAULT, MAIN_RETURNED)
    assert machine._image.function_at(pc) == "Reset_Handler"


@pytest.mark.parametrize("machine", [M33], indirect=True)
def test_a_stack_overflow_is_a_fault_where_the_core_has_a_limit(machine: MpsMachine) -> None:
    machine.give(Command.OVERFLOW)
    assert machine.comes_back()
    assert machine.report[:2] == (FAULT, USAGE_FAULT)


@pytest.mark.slow
def test_the_watchdog_ends_an_endless_loop(machine: MpsMachine) -> None:
    machine.give(Command.SPIN)
    assert machine.comes_back()
    assert machine.report == (WATCHDOG, 0, machine.report[2])
