from collections.abc import Callable

import pytest

from codegen.errors import BoardError
from simulator.devices.peripherals import Rng
from simulator.errors import ImageError, MachineFault
from simulator.machines.elf_image import ElfImage
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine

from ..conftest import WorldClock

MakeMachine = Callable[..., UnicornMachine]
SLICE = 200


def word(machine: UnicornMachine, symbol: str) -> int:
    address = machine.image.address_of(symbol)
    return int.from_bytes(machine.read_memory(address, 4), "little")


def set_word(machine: UnicornMachine, symbol: str, value: int) -> None:
    machine.write_sram(machine.image.address_of(symbol), value.to_bytes(4, "little"))


def test_the_firmware_boots_and_idles_at_wfi(machine: UnicornMachine) -> None:
    assert machine.run(SLICE) is StopReason.IDLE
    assert word(machine, "looks") == 1
    assert word(machine, "initialised") == 0x12345678


def start_tick(machine: UnicornMachine, milliseconds: float) -> None:
    """SysTick from the 16 MHz oscillator / 8."""
    machine.call("poke", 0xE000E014, int(milliseconds * 2000) - 1)
    machine.call("poke", 0xE000E010, 3)


def run_for(machine: UnicornMachine, world: WorldClock, milliseconds: float) -> StopReason:
    """What comes of it when the world's clock goes on."""
    machine.run(SLICE)
    world.now += milliseconds
    return machine.run(SLICE)


def test_a_core_that_sleeps_is_woken_by_enabled_interrupts_only(
    machine: UnicornMachine, world: WorldClock
) -> None:
    for _ in range(10):
        world.now += 100
        assert machine.run(SLICE) is StopReason.IDLE
    assert word(machine, "looks") == 1
    start_tick(machine, 250)
    for _ in range(10):
        world.now += 100
        assert machine.run(SLICE) is StopReason.IDLE
    assert word(machine, "looks") == 1 + 4


def test_a_core_that_nobody_looked_at_wakes_up_a_few_times_and_sees_what_time_it_is(
    machine: UnicornMachine, world: WorldClock
) -> None:
    """Else a host that is behind would have the more to do, the further behind it is."""
    machine.run(SLICE)
    start_tick(machine, 250)
    assert run_for(machine, world, 60_000) is StopReason.IDLE
    assert 2 <= word(machine, "looks") - 1 <= 6
    assert word(machine, "milliseconds") == pytest.approx(60_000, abs=1)
    seen = word(machine, "looks")
    for _ in range(10):
        run_for(machine, world, 100)
    assert word(machine, "looks") == seen + 4
    assert word(machine, "milliseconds") == pytest.approx(61_000, abs=1)


def test_clock_battery_and_entropy_come_from_outside(
    make_machine: MakeMachine, world: WorldClock
) -> None:
    world.now = 5000
    values = {"battery_percent": lambda: 50.0}
    first, second, other = (make_machine(seed=seed, **values) for seed in (1, 1, 2))
    for machine in (first, second, other):
        machine.run(SLICE)
        start_tick(machine, 1234.2)
    world.now += 1234.5
    first.run(SLICE)
    assert word(first, "milliseconds") == 1234
    assert word(first, "battery") == 2048
    second.run(SLICE)
    other.run(SLICE)
    assert word(first, "looks") == 2
    assert word(first, "entropy") == word(second, "entropy") != word(other, "entropy")


def test_bytes_pass_through_the_receive_ring_and_wrap(
    machine: UnicornMachine, world: WorldClock
) -> None:
    machine.run(SLICE)
    sent = bytes(range(256)) * 2
    echoed = b""
    for first in range(0, len(sent), 37):
        assert machine.receive(sent[first : first + 37]) == len(sent[first : first + 37])
        assert run_for(machine, world, 1) is StopReason.IDLE
        echoed += machine.take_transmitted()
    assert echoed == bytes(byte ^ 0xFF for byte in sent)
    assert (machine.traffic.up, machine.traffic.down) == (512, 512)


def test_bytes_before_the_receiver_is_on_are_lost(
    machine: UnicornMachine, world: WorldClock
) -> None:
    machine.receive(b"early")
    machine.clock.pass_time(10**9)
    machine.run(SLICE)
    machine.receive(b"late")
    run_for(machine, world, 1)
    assert machine.take_transmitted() == bytes(byte ^ 0xFF for byte in b"late")


def test_dtr_and_dcd_are_on_the_pins_of_the_board(
    machine: UnicornMachine, world: WorldClock
) -> None:
    assert not machine.data_terminal_ready
    machine.run(SLICE)
    assert machine.data_terminal_ready
    machine.set_data_carrier_detect(True)
    carrier = 1 << machine.board.defines.get("TF_BOARD_DCD_PIN", 1)
    assert machine.call("peek", 0x40020410) & carrier
    machine.set_data_carrier_detect(False)
    assert not machine.call("peek", 0x40020410) & carrier
    set_word(machine, "command", 1)
    start_tick(machine, 1)
    run_for(machine, world, 2)
    assert not machine.data_terminal_ready


def test_systick_tells_when_an_idle_firmware_wants_to_run_again(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    assert machine.tick_milliseconds == float("inf")
    start_tick(machine, 1000)
    assert machine.tick_milliseconds == pytest.approx(1000, abs=0.01)
    machine.call("poke", 0x40023804, 16 | 336 << 6 | 7 << 24)  # PLL: 16 MHz / 16 * 336 / 2
    machine.call("poke", 0x40023808, 2)
    start_tick(machine, 1000)
    assert machine.tick_milliseconds == pytest.approx(2_000_000 / 21_000, abs=0.01)


def test_a_reset_request_starts_again_with_sram_kept(
    machine: UnicornMachine, world: WorldClock
) -> None:
    machine.run(SLICE)
    machine.write_sram(0x2000FFF0, b"kept")
    set_word(machine, "command", 2)
    start_tick(machine, 1)
    assert run_for(machine, world, 2) is StopReason.RESET
    assert machine.read_memory(0x2000FFF0, 4) == b"kept"
    assert machine.run(SLICE) is StopReason.IDLE
    assert word(machine, "looks") == 1


def test_power_loss_forgets_sram_but_not_flash(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    machine.call("unlock")
    machine.call("program", 0x08010000, 0xCAFE)
    machine.write_sram(0x2000FFF0, b"gone")
    machine.power_on()
    assert machine.read_memory(0x2000FFF0, 4) != b"gone"
    assert machine.read_memory(0x08010000, 4) == (0xCAFE).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("address", "function", "access"),
    [
        (0x30000000, "poke", "write"),
        (0x30000000, "peek", "read"),
        (0x40000400, "peek", "read"),  # TIM3: not on our boards' list
        (0x00000000, "peek", "read"),
        (0x1FFFFFFC, "poke", "write"),  # below the stack
    ],
)
def test_an_access_outside_the_board_names_address_access_pc_and_symbol(
    machine: UnicornMachine, address: int, function: str, access: str
) -> None:
    machine.run(SLICE)
    with pytest.raises(MachineFault) as caught:
        machine.call(function, address, 1)
    fault = caught.value
    start, size = machine.image.symbols[function]
    assert (fault.address, fault.access, fault.symbol) == (address, access, function)
    assert start <= fault.pc < start + size
    for part in (f"{address:#010x}", access, f"{fault.pc:#010x}", function):
        assert part in str(fault)
    assert machine.run(SLICE) is StopReason.FAULT


def test_the_end_of_sram_is_the_end(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    end = machine.board.sram.address + machine.board.sram.bytes
    assert machine.call("poke", end - 4, 7) == 7
    with pytest.raises(MachineFault, match=f"{end:#010x}"):
        machine.call("poke", end, 7)


@pytest.mark.parametrize("address", [0x4001104C, 0x40026400 + 0x3FC])
def test_a_missing_register_names_address_and_pc(machine: UnicornMachine, address: int) -> None:
    machine.run(SLICE)
    with pytest.raises(MachineFault, match="no such 32-bit register") as caught:
        machine.call("poke", address, 1)
    assert caught.value.address == address
    assert caught.value.symbol == "poke"


def test_registers_take_whole_words_only(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    with pytest.raises(MachineFault, match="write of 1 bytes at 0x40020414"):
        machine.call("poke_byte", 0x40020414, 1)


def test_an_it_block_ends_where_it_ends_though_its_load_is_the_first_of_a_page(
    machine: UnicornMachine,
) -> None:
    machine.run(SLICE)
    sram, flash = machine.board.sram, machine.board.flash
    for place in (sram.address + 0x4000, sram.address + sram.bytes - 4, flash.address + 0x8000):
        assert machine.call("predicated", place) == 4


def test_a_stack_overflow_is_a_fault_and_not_damage(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    assert machine.call("deep", 3000) == 3
    with pytest.raises(MachineFault) as caught:
        machine.call("deep", 5000)
    assert caught.value.address is not None
    assert caught.value.address < machine.board.sram.address


def test_an_undefined_instruction_is_a_fault(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    with pytest.raises(MachineFault, match="undefined"):
        machine.call("undefined")


def test_a_jump_to_nowhere_is_a_fault(machine: UnicornMachine) -> None:
    machine._is_asleep = False
    machine.pc = 0x10000000
    assert machine.run(SLICE) is StopReason.IDLE, "in the firmware's handler"
    assert machine.fault is None
    assert machine.last_fault is not None
    assert machine.last_fault.address == 0x10000000
    assert "fetch" in str(machine.last_fault)


@pytest.mark.parametrize("access", ["poke", "peek"])
def test_an_access_across_the_end_of_sram_faults_in_what_lies_behind_it(
    machine: UnicornMachine, access: str
) -> None:
    machine.run(SLICE)
    end = machine.board.sram.address + machine.board.sram.bytes
    with pytest.raises(MachineFault) as caught:
        machine.call(access, end - 2, 0x12345678)
    assert caught.value.address == end


@pytest.mark.parametrize("address", [0x20000000, 0x40011000, 0xA0000000, 0xE000E000, 0xF0000000])
def test_what_can_not_hold_code_is_not_executed(machine: UnicornMachine, address: int) -> None:
    machine._is_asleep = False
    machine.pc = address
    assert machine.run(SLICE) is StopReason.IDLE, "in the firmware's handler"
    assert machine.last_fault is not None
    assert (machine.last_fault.address, machine.last_fault.access) == (address, "fetch")
    assert machine.last_fault.status == 1, "instruction access violation"


def test_a_slice_ends_even_in_an_endless_loop(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    machine._is_asleep = False
    machine.pc = machine.image.address_of("spin")
    for _ in range(3):
        before, clocks = word(machine, "initialised"), machine.clock.clocks
        assert machine.run(10) is StopReason.SLICE_OVER
        assert 160_000 <= machine.clock.clocks - clocks < 160_020, "10 ms at 16 MHz"
        assert word(machine, "initialised") > before


def test_the_same_run_takes_the_same_time_however_it_is_sliced(make_machine: MakeMachine) -> None:
    times = set()
    for milliseconds in (0.01, 1.7, 100):
        machine = make_machine(clock=lambda: 0)
        machine.run(SLICE)
        machine.call("mix", 20_000, 1, 2, 3, 4, 5, slice_milliseconds=milliseconds)
        times.add(machine.clock.now)
    assert len(times) == 1


def test_a_sliced_computation_gives_the_same_result(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    whole = machine.call("mix", 100_000, 1, 2, 3, 4, 5)
    machine.power_on()
    machine.run(SLICE)
    assert machine.call("mix", 100_000, 1, 2, 3, 4, 5, slice_milliseconds=0.02) == whole


def spy(monkeypatch: pytest.MonkeyPatch, peripheral: object, name: str) -> list[tuple[int, ...]]:
    """What a peripheral is asked for from now on."""
    seen: list[tuple[int, ...]] = []
    method: Callable[..., int | None] = getattr(peripheral, name)

    def look(*arguments: int) -> int | None:
        seen.append(arguments)
        return method(*arguments)

    monkeypatch.setattr(peripheral, name, look)
    return seen


@pytest.mark.parametrize("looking", [True, False])
def test_no_access_runs_twice_or_is_skipped_however_often_slices_end(
    machine: UnicornMachine, monkeypatch: pytest.MonkeyPatch, looking: bool
) -> None:
    machine.run(SLICE)
    stored = spy(monkeypatch, machine.gpio, "write")
    rng = next(one for one in machine._peripherals if isinstance(one, Rng))
    drawn = spy(monkeypatch, rng, "read")
    looks = spy(monkeypatch, machine.gpio, "read")
    rounds = 5_000
    count = machine.call("traffic", rounds, int(looking), slice_milliseconds=0.001)
    assert [value for _, value in stored] == list(range(1, rounds + 1))
    assert len(drawn) == count == rounds
    assert bool(looks) == looking


def test_flash_is_programmed_once_per_word_however_often_slices_end(
    machine: UnicornMachine,
) -> None:
    machine.run(SLICE)
    machine.call("unlock")
    machine.call("erase", 7)
    before, words = machine.flash_operations, 2_000
    address = machine.board.flash.sector_address(7)
    assert machine.call("program_many", address, words, slice_milliseconds=0.001) == words
    assert machine.flash_operations == before + words
    assert machine.read_memory(address, 4 * words) == b"".join(
        number.to_bytes(4, "little") for number in range(words)
    )


def test_a_call_that_never_returns_is_given_up(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    with pytest.raises(MachineFault, match="spin didn't return"):
        machine.call("spin", max_milliseconds=50)


def test_calls_pass_more_than_four_arguments(machine: UnicornMachine) -> None:
    machine.run(SLICE)
    assert machine.call("mix", 0, 1, 20, 300, 4000, 50000) == 54321


def test_an_image_for_other_addresses_is_refused(board: str, image: ElfImage) -> None:
    from dataclasses import replace

    moved = replace(image, segments=((0x00200000, b"x"),))
    with pytest.raises(ImageError, match="outside the flash"):
        UnicornMachine(board, moved)


def test_an_unknown_board_is_refused_by_name(image: ElfImage) -> None:
    with pytest.raises(BoardError, match=r"no board 'toaster'.*stm32f746"):
        UnicornMachine("toaster", image)
