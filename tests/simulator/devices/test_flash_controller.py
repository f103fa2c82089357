from collections.abc import Callable

import pytest

from simulator.errors import MachineFault
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine

MakeMachine = Callable[..., UnicornMachine]


@pytest.fixture
def machine(make_machine: MakeMachine) -> UnicornMachine:
    machine = make_machine()
    machine.run(200)
    machine.call("unlock")
    return machine


def last_sector(machine: UnicornMachine) -> tuple[int, int, int]:
    index = len(machine.board.flash.sectors) - 1
    return index, machine.board.flash.sector_address(index), machine.board.flash.sectors[index]


def test_programming_clears_bits_only(machine: UnicornMachine) -> None:
    _, address, _ = last_sector(machine)
    assert machine.call("program", address, 0xFFFF00FF) == 0xFFFF00FF
    machine.call("program", address, 0x00FFFFFF)
    assert machine.read_memory(address, 4) == bytes.fromhex("ff00ff00")


def test_the_firmware_sees_what_flash_made_of_its_word(machine: UnicornMachine) -> None:
    _, address, _ = last_sector(machine)
    machine.call("program", address, 0x0000FFFF)
    assert machine.call("program", address, 0xFF00FF00) == 0x0000FF00


def test_erasing_sets_its_sector_and_no_other(machine: UnicornMachine) -> None:
    index, address, size = last_sector(machine)
    for place in (address - 4, address, address + size - 4):
        machine.call("program", place, 0)
    machine.call("erase", index)
    assert machine.read_memory(address, size) == b"\xff" * size
    assert machine.read_memory(address - 4, 4) == bytes(4)


@pytest.mark.parametrize("bytes_stored", [1, 4])
def test_a_store_without_unlock_is_a_fault(make_machine: MakeMachine, bytes_stored: int) -> None:
    machine = make_machine()
    machine.run(200)
    with pytest.raises(MachineFault, match="0x08010000") as caught:
        machine.call("poke" if bytes_stored == 4 else "poke_byte", 0x08010000, 0)
    assert caught.value.symbol.startswith("poke")
    assert machine.read_memory(0x08010000, 4) == b"\xff" * 4


def test_a_store_after_unlock_but_without_pg_is_a_fault(machine: UnicornMachine) -> None:
    with pytest.raises(MachineFault, match="without unlock and PG"):
        machine.call("poke", 0x08010000, 0)


def test_a_byte_store_with_pg_is_a_fault(machine: UnicornMachine) -> None:
    machine.call("poke", 0x40023C10, 0x201)
    with pytest.raises(MachineFault, match="aligned words"):
        machine.call("poke_byte", 0x08010000, 0)


def test_a_wrong_key_is_a_fault(make_machine: MakeMachine) -> None:
    machine = make_machine()
    machine.run(200)
    with pytest.raises(MachineFault, match="wrong flash key"):
        machine.call("poke", 0x40023C04, 0xCDEF89AB)


def test_the_sector_of_the_firmware_is_not_erased(machine: UnicornMachine) -> None:
    with pytest.raises(MachineFault, match="holds the running firmware"):
        machine.call("erase", 0)


def test_a_power_cut_tears_one_word_and_nothing_after_it(make_machine: MakeMachine) -> None:
    outcomes = set()
    for seed in range(40):
        machine = make_machine()
        machine.run(200)
        machine.call("unlock")
        _, address, _ = last_sector(machine)
        machine.call("program", address, 0x11111111)
        machine.cut_power_at_flash_operation(2, seed)
        machine.call("program", address + 4, 0x22222222)
        with pytest.raises(MachineFault, match="power cut"):
            machine.call("program", address + 8, 0x33333333)
        first, second, torn, after = (
            int.from_bytes(machine.read_memory(address + 4 * i, 4), "little") for i in range(4)
        )
        assert (first, second, after) == (0x11111111, 0x22222222, 0xFFFFFFFF)
        assert torn & 0x33333333 == 0x33333333  # no bit is cleared that wasn't asked for
        outcomes.add("none" if torn == 0xFFFFFFFF else "all" if torn == 0x33333333 else "part")
        assert machine.run(200) is StopReason.POWER_CUT
        machine.power_on()
        assert machine.run(200) is StopReason.IDLE
        machine.close()
    assert outcomes == {"none", "all", "part"}


def test_a_power_cut_in_an_erase_only_sets_bits_of_that_sector(make_machine: MakeMachine) -> None:
    changed = set()
    for seed in range(12):
        machine = make_machine()
        machine.run(200)
        machine.call("unlock")
        index, address, size = last_sector(machine)
        machine.call("program", address, 0x0F0F0F0F)
        machine.call("program", address - 4, 0)
        machine.cut_power_at_flash_operation(1, seed)
        with pytest.raises(MachineFault, match="power cut"):
            machine.call("erase", index)
        value = int.from_bytes(machine.read_memory(address, 4), "little")
        assert value & 0x0F0F0F0F == 0x0F0F0F0F
        assert machine.read_memory(address - 4, 4) == bytes(4)
        assert machine.read_memory(address + 4, size - 4) == b"\xff" * (size - 4)
        changed.add(value)
        machine.close()
    assert {0x0F0F0F0F, 0xFFFFFFFF} < changed


def test_the_same_seed_tears_the_same_way(make_machine: MakeMachine) -> None:
    def torn(seed: int) -> bytes:
        machine = make_machine()
        machine.run(200)
        machine.call("unlock")
        machine.cut_power_at_flash_operation(1, seed)
        with pytest.raises(MachineFault):
            machine.call("program", last_sector(machine)[1], 0x12345678)
        return machine.read_memory(last_sector(machine)[1], 4)

    assert [torn(seed) for seed in range(8)] == [torn(seed) for seed in range(8)]


@pytest.mark.parametrize("parallelism", [0, 1, 2])
def test_erasing_takes_the_datasheets_time_in_which_the_core_stands_still(
    machine: UnicornMachine, parallelism: int
) -> None:
    worst = {16: 0.5, 32: 0.5, 64: 1.1, 128: 2.0 if machine.board.name == "stm32f407" else 1.1}
    seconds = worst | {256: 2.0}
    slower = {0.5: (0.8, 0.6), 1.1: (2.4, 1.4), 2.0: (4.0, 2.6)}
    for sector, size in enumerate(machine.board.flash.sectors):
        if sector == 0:  # the firmware's
            continue
        expected = seconds[size // 1024]
        if parallelism < 2:
            expected = slower[expected][parallelism]
        machine.call("poke", 0x40023C10, 1 << 1 | sector << 3 | parallelism << 8)
        time, clocks = machine.clock.now, machine.clock.clocks
        machine.call("poke", 0x40023C10, 1 << 16 | 1 << 1 | sector << 3 | parallelism << 8)
        assert (machine.clock.now - time) / 1e9 == pytest.approx(expected, abs=0.001)
        assert machine.clock.clocks - clocks < 100


def test_programming_a_word_takes_16_microseconds(machine: UnicornMachine) -> None:
    index, address, _ = last_sector(machine)
    machine.call("erase", index)
    before, words = machine.clock.now, 1000
    clocks = machine.clock.clocks
    machine.call("program_many", address, words)
    executed = (machine.clock.clocks - clocks) / 16_000_000 * 1e9
    assert machine.clock.now - before - executed == pytest.approx(words * 16_000, rel=0.001)
