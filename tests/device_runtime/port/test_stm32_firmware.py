"""The firmware with the tiny model on emulated boards: the same rounds as the host library."""

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import device_runtime
from codegen.emit.monocypher import write_monocypher
from codegen.emit.zcbor_codec import generate_codec
from codegen.firmware.boards import Board as BoardDescription
from codegen.firmware.boards import load_board
from codegen.firmware.bundle import SamplesInfo
from codegen.firmware.flash_layout import (
    FlashLayout,
    LogNeeds,
    layout_defines,
    linker_script,
    plan_flash,
)
from codegen.firmware.toolchain import Toolchain, find_toolchain
from codegen.host_toolchain import BuildResult, Source
from fleet.protocol import Announce, Delta, Status
from fleet.protocol.keys import DeviceKeys
from simulator.devices.flash_image import identity_region
from simulator.devices.peripherals import Rng
from simulator.machines.protocol import StopReason
from simulator.machines.unicorn import UnicornMachine

from ..client.rounds import publish_blob
from ..host_device import (
    CDDL,
    IDENTITY,
    PLANS,
    SAMPLES,
    TESTS,
    FakeBroker,
    HostDevice,
    World,
    build_library,
)
from ..keyed import Keys, coded_of
from ..tiny_round import Data, Weights, clustered_data, task_for, train, values_of

FACTORY = bytes(144)
DATA = clustered_data()
BLOB = train(Weights.parse(FACTORY), DATA, seed=99, epochs=1, biases_only=False).blob()


def with_little_flash_inside() -> BoardDescription:
    """So little that slots and log lie in the external flash."""
    described = load_board("stm32f746").model_dump()
    described["flash"]["sectors"] = [32768] * 3
    return BoardDescription.model_validate(described)


BOARDS = {
    "stm32f746": load_board("stm32f746"),
    "stm32f407": load_board("stm32f407"),
    "stm32f746-external": with_little_flash_inside(),
}
KEYS = Keys()
WITHOUT_KEYS = identity_region(
    IDENTITY, authority=KEYS.authority.public, keyring=KEYS.signed_keyring
)
STACK_PAINT = b"\xa5" * 4


@dataclass
class Firmware:
    board: BoardDescription
    layout: FlashLayout
    built: BuildResult
    path: Path


@pytest.fixture(scope="session", params=list(BOARDS))
def firmware(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return built_firmware(request.param, tmp_path_factory.mktemp(request.param), find_toolchain())


def built_firmware(name: str, folder: Path, toolchain: Toolchain) -> Firmware:
    board = BOARDS[name]
    layout = plan_flash(board, 60_000, len(FACTORY), [LogNeeds(16, 3, 8192)])
    assert layout.uses_external_flash == name.endswith("external")
    (folder / "firmware.ld").write_text(linker_script(board, layout))
    generated = generate_codec(CDDL, folder / "codec")
    sources = [*device_runtime.firmware_sources("stm32"), TESTS / "tiny_model.c"]
    built = toolchain.build(
        [
            *(Source(source) for source in sources),
            *(Source(source, warnings=False) for source in generated),
            write_monocypher(folder / "codec"),
        ],
        include_dirs=[*device_runtime.include_directories(), folder / "codec"],
        defines={"ZCBOR_CANONICAL": 1, **layout_defines(board, layout)},
        board=board,
        linker_script=folder / "firmware.ld",
        output_elf=folder / "firmware.elf",
    )
    return Firmware(board, layout, built, folder / "firmware.elf")


@dataclass
class Board:
    """An emulated board with the interface of ``HostDevice``."""

    firmware: Firmware
    data: Data
    region: bytes = identity_region(IDENTITY)
    now: int = 0
    operations: int = 0
    machine: UnicornMachine = field(init=False)

    def __post_init__(self) -> None:
        layout = self.firmware.layout
        samples = SamplesInfo(
            address=layout.samples.address,
            bytes=layout.samples.bytes,
            sectors=(layout.samples.first_sector, layout.samples.sector_count),
            units=layout.samples.units,
        )
        self.machine = UnicornMachine(
            self.firmware.board,
            self.firmware.path,
            clock=lambda: self.now,
            flash_content=[
                (layout.identity.address, self.region),
                (samples.address, self.data.region(samples)),
            ],
        )

    def power_on(self, now: int) -> int:
        self.now = now
        self.machine.power_on()
        return 0

    def run(self, now: int, steps: int = 1) -> bool:
        self.now = now
        reason = self.machine.run(5)
        assert reason is not StopReason.FAULT, self.machine.fault
        return reason is StopReason.SLICE_OVER

    def receive(self, data: bytes) -> int:
        return self.machine.receive(data)

    def take(self) -> bytes:
        return self.machine.take_transmitted()

    def set_carrier(self, carrier: bool) -> None:
        self.machine.set_data_carrier_detect(carrier)

    @property
    def has_power(self) -> bool:
        return self.machine.run(0) is not StopReason.POWER_CUT

    @property
    def dials(self) -> bool:
        return self.machine.data_terminal_ready


def world_on(firmware: Firmware, region: bytes = identity_region(IDENTITY)) -> World:
    world = World(Board(firmware, DATA, region), FakeBroker())  # type: ignore[arg-type]
    world.boot()
    return world


@pytest.fixture
def world(firmware: Firmware) -> Iterator[World]:
    made = world_on(firmware)
    yield made
    machine_of(made).close()


def machine_of(world: World) -> UnicornMachine:
    return world.device.machine  # type: ignore[attr-defined]


def deltas_of_a_round(world: World, epochs: int = 3) -> list[Delta]:
    publish_blob(world, BLOB)
    world.give(task_for(PLANS[0], BLOB, epochs=epochs))
    world.run_until(lambda: bool(world.of(Delta)), seconds=120)
    return world.of(Delta)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def host_deltas(library: ctypes.CDLL) -> list[Delta]:
    world = World(HostDevice(library, DATA.region(SAMPLES)), FakeBroker())
    assert world.boot() == 0
    return deltas_of_a_round(world)


def test_the_board_boots_connects_and_announces_itself(world: World, firmware: Firmware) -> None:
    world.run_until(lambda: bool(world.of(Status)))
    announce = world.of(Announce)[0]
    board = firmware.board
    assert announce.board == board.name
    assert announce.battery == 100
    used = board.sram_limit_bytes - announce.free_sram_bytes
    assert board.stack_bytes < used < board.stack_bytes + 10_000


def test_a_round_on_the_board_gives_the_same_delta_as_on_the_host(
    world: World, host_deltas: list[Delta]
) -> None:
    assert deltas_of_a_round(world) == host_deltas
    assert host_deltas[0].coded


def untouched_stack(world: World, firmware: Firmware) -> int:
    """Bytes of it that were never used."""
    stack = bytes(machine_of(world).sram[: firmware.board.stack_bytes])
    untouched = 0
    while stack[untouched : untouched + 4] == STACK_PAINT:
        untouched += 4
    assert untouched < len(stack), "it is painted, and was used"
    return untouched


def test_the_stack_stays_far_from_its_end(world: World, firmware: Firmware) -> None:
    deltas_of_a_round(world)
    assert firmware.board.stack_bytes // 2 < untouched_stack(world, firmware)


# --- Keys -----------------------------------------------------------------------------------------


def keys_of(world: World, firmware: Firmware) -> DeviceKeys:
    """Those that the board has made itself."""
    start = firmware.layout.identity.address + len(WITHOUT_KEYS)
    record = machine_of(world).read_memory(start, 104)
    assert record[:4] == b"\x4a\x02\x60\x00"
    return DeviceKeys.decode(record[8:])


def masked_round(world: World, keys: Keys, number: int) -> None:
    """What the board sends is what its keys, the nonce and the values say, bit for bit."""
    world.forget_published()
    task = task_for(PLANS[0], BLOB, epochs=3, round=number)
    world.give(keys.sign(task))
    world.run_until(lambda: bool(world.of(Delta)), seconds=120)
    values = values_of(world.of(Delta), 68).tolist()
    world.run_for(3)  # until its receipt
    world.forget_published()
    task = keys.masked(
        replace(task, round=number + 1), clip=150, norm_share=30, noise_variance=70, mask_bits=24
    )
    world.give(task)
    world.run_until(lambda: bool(world.of(Delta)), seconds=120)
    coded = coded_of(world.of(Delta))
    assert coded == keys.mask(task, coded[:12], values)


@pytest.mark.slow
def test_with_zig_too_a_board_makes_keys_and_masks_on_its_stack(tmp_path: Path) -> None:
    built = built_firmware("stm32f407", tmp_path, find_toolchain("zig"))
    test_a_board_makes_its_keys_once_and_masks_with_them_on_a_stack_that_has_room(built)


def test_a_board_makes_its_keys_once_and_masks_with_them_on_a_stack_that_has_room(
    firmware: Firmware,
) -> None:
    world = world_on(firmware, WITHOUT_KEYS)
    world.run_until(lambda: bool(world.of(Status)))
    publish_blob(world, BLOB)
    made = keys_of(world, firmware)
    assert made.enrol("f", "dev1").is_right
    keys = replace(KEYS, device=made)
    masked_round(world, keys, 1)
    newer = replace(keys, generation=2, unmaskers=(bytes([9]) * 32, *keys.unmaskers))
    world.give(newer.sign(task_for(PLANS[0], BLOB, action=0, round=3), with_keyring=True))
    world.run_until(lambda: world.of(Announce)[-1:] and world.of(Announce)[-1].keyring == 2)
    world.boot()
    masked_round(world, newer, 4)
    assert keys_of(world, firmware) == made
    assert firmware.board.stack_bytes // 4 < untouched_stack(world, firmware)
    machine_of(world).close()


@pytest.mark.parametrize(
    "registers",
    [{Rng.DR: 7, 0x04: 1}, {Rng.DR: 7, 0x04: 1 | 1 << 6}, {0x04: 1 | 1 << 1}, {0x04: 0}],
    ids=["stuck", "seed fault since", "clock fault", "never ready"],
)
def test_a_generator_that_fails_makes_no_keys(
    firmware: Firmware, registers: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Rng.read
    monkeypatch.setattr(
        Rng,
        "read",
        lambda rng, at: registers[at] if at in registers else sound(rng, at),
    )
    world = world_on(firmware, WITHOUT_KEYS)
    world.run_until(lambda: bool(world.of(Status)))
    start = firmware.layout.identity.address + len(WITHOUT_KEYS)
    assert machine_of(world).read_memory(start, 104) == b"\xff" * 104
    machine_of(world).close()


def test_a_reset_while_training_does_the_round_again(world: World, library: ctypes.CDLL) -> None:
    epochs = 255
    host = World(HostDevice(library, DATA.region(SAMPLES)), FakeBroker())
    assert host.boot() == 0
    expected = deltas_of_a_round(host, epochs)
    publish_blob(world, BLOB)
    world.give(task_for(PLANS[0], BLOB, epochs=epochs))
    world.run_until(lambda: bool(world.broker.unsubscribed))  # all chunks are there
    world.step()
    world.step()
    assert not world.of(Delta)
    world.boot()
    world.run_until(lambda: bool(world.of(Delta)), seconds=120)
    assert world.of(Delta) == expected
    assert expected[0].train_steps == epochs * expected[0].train_samples
    assert world.of(Announce)[-1].candidate in (bytes(32), hashlib.sha256(BLOB).digest())


@pytest.mark.slow
def test_power_cuts_during_the_commit_leave_a_board_that_finishes(
    firmware: Firmware, host_deltas: list[Delta]
) -> None:
    reference = world_on(firmware)
    deltas_of_a_round(reference)
    operations = machine_of(reference).flash_operations
    machine_of(reference).close()
    assert operations > len(BLOB) // 4
    for cut in [*range(1, operations + 1, 5), operations - 1, operations]:
        world = world_on(firmware)
        machine_of(world).cut_power_at_flash_operation(cut, seed=cut)
        publish_blob(world, BLOB)
        world.give(task_for(PLANS[0], BLOB, epochs=3))
        world.run_until(lambda world=world: not world.device.has_power)
        assert not world.of(Delta)
        world.boot()
        world.run_until(lambda world=world: bool(world.of(Delta)), seconds=120)
        assert world.of(Delta) == host_deltas
        assert world.of(Announce)[-1].current == hashlib.sha256(FACTORY).digest()
        assert world.of(Announce)[-1].candidate in (bytes(32), hashlib.sha256(BLOB).digest())
        machine_of(world).close()


def test_a_board_without_identity_waits_and_looks_again(firmware: Firmware) -> None:
    world = World(Board(firmware, DATA), FakeBroker())  # type: ignore[arg-type]
    machine = machine_of(world)
    start = firmware.layout.identity.address
    told = machine.read_memory(start, 4096)
    machine.write_flash(start, b"\xff" * 4096)
    world.boot()
    world.run_for(3)
    assert world.broker.connects == 0
    machine.write_flash(start, told)  # somebody commissions it
    world.run_until(lambda: bool(world.of(Announce)))
    machine.close()


def go_on_at(world: World, code: bytes) -> int:
    """Let the core go on in ``code`` at an unused place of the flash; returns its address."""
    machine = machine_of(world)
    place = machine.board.flash.address + machine.board.flash.sectors[0] - 16
    machine.write_flash(place, code)
    machine.flush_translations()
    machine._is_asleep = False
    machine.pc = place
    return place


@pytest.mark.parametrize(
    ("code", "cause", "fault_code", "reason"),
    [
        ("00de", 4, 6, 11),  # udf: a fault, a usage fault, restarted after a fault
        ("4ff0405000 68".replace(" ", ""), 4, 5, 11),  # mov r0, #0x30000000; ldr r0, [r0]
        ("fee7", 3, 0, 12),  # b .: the watchdog, no fault, restarted by the watchdog
    ],
)
def test_a_device_that_broke_down_comes_back_by_itself_and_says_why(
    world: World, code: str, cause: int, fault_code: int, reason: int
) -> None:
    world.run_until(lambda: bool(world.of(Status)))
    assert world.of(Announce)[0].reset_cause == 0
    machine, connects = machine_of(world), world.broker.connects
    place = go_on_at(world, bytes.fromhex(code))
    if cause == 3:  # 26 seconds take a while to emulate
        machine.watchdog.expires_at = machine.clock.now + 200_000_000
    world.run_until(lambda: len(world.of(Announce)) > 1, seconds=60)
    again = world.of(Announce)[-1]
    assert (again.reset_cause, again.fault_code) == (cause, fault_code)
    assert again.fault_pc == (0 if cause == 3 else place + len(code) // 2 - 2)
    assert world.broker.connects == connects + 1
    world.run_until(lambda: (1, reason) in world.states())


def test_a_round_outlasts_the_erase_of_the_largest_sectors(
    world: World, firmware: Firmware
) -> None:
    """Of two seconds each, in which the core stands still: link and watchdog hold."""
    world.run_until(lambda: bool(world.of(Status)))
    machine, layout = machine_of(world), firmware.layout
    for slot in (layout.slot_a, layout.slot_b):
        machine.write_flash(slot.address, bytes(64))  # so that it isn't taken as erased
    before = machine.clock.now
    assert len(deltas_of_a_round(world)) == 1
    assert world.broker.connects == 1
    assert len(world.of(Announce)) == 1
    assert machine.last_fault is None
    if layout.slot_a.flash == "internal":
        assert (machine.clock.now - before) / 1e9 > 2
