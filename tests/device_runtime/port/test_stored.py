"""What is stored in flash, as an ARM image on boards, with the power cut at flash operations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from codegen.firmware.boards import Board
from codegen.firmware.flash_layout import FlashLayout
from simulator.devices.flash_image import Identity, identity_region
from simulator.errors import MachineFault
from simulator.machines.elf_image import ElfImage
from simulator.machines.unicorn import UnicornMachine

from .flash_boards import (
    FLASH_FAILED,
    NOT_FOUND,
    OK,
    SAMPLE_BYTES,
    WEIGHTS_BYTES,
    MakeMachine,
    booted,
    build,
    external_board,
    internal_board,
    making,
)

MODEL, OTHER_MODEL = 0, 7
BOARDS = {
    "stm32f407": internal_board("stm32f407"),
    "stm32f746": internal_board("stm32f746"),
    "external": external_board(4096),
}


@dataclass(frozen=True)
class Built:
    board: Board
    image: ElfImage
    layout: FlashLayout


@pytest.fixture(scope="session", params=BOARDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    board = BOARDS[request.param]
    image, layout = build(board, tmp_path_factory.mktemp(request.param))
    assert layout.uses_external_flash == (request.param == "external")
    assert layout.samples.units == 2
    return Built(board, image, layout)


@pytest.fixture
def make_machine(built: Built) -> Iterator[MakeMachine]:
    yield from making(built.board, built.image)


@pytest.fixture
def machine(make_machine: MakeMachine) -> UnicornMachine:
    return booted(make_machine())


def restarted(machine: UnicornMachine) -> UnicornMachine:
    machine.power_on()
    return booted(machine)


def region_content(machine: UnicornMachine, layout: FlashLayout, *names: str) -> list[bytes]:
    regions = [layout.stores[name] for name in names]
    return [machine.read_memory(region.address, region.bytes) for region in regions]


def put_back(
    machine: UnicornMachine, layout: FlashLayout, content: list[bytes], *names: str
) -> None:
    for name, data in zip(names, content, strict=True):
        machine.write_flash(layout.stores[name].address, data)
    restarted(machine)


def released(machine: UnicornMachine, version: int) -> None:
    assert machine.call("stage_and_commit", version) == OK
    assert machine.call("release", version) == OK


def versions(machine: UnicornMachine) -> tuple[int, int]:
    """Current and candidate, 0 for the factory's and for none."""
    (current,) = (v for v in range(5) if machine.call("is_current", v))
    (candidate,) = (v for v in range(5) if machine.call("is_candidate", v))
    return current, candidate


PREPARED = {
    "factory": (),
    "candidate": (1,),
    "released": (1, -1),
    "released and candidate": (1, -1, 2),
    "another model's": (1, -1, 2),
}
"""Versions committed, and released where they are negative, before the one that is cut."""


@pytest.mark.slow
@pytest.mark.parametrize("prepared", PREPARED)
def test_the_weights_survive_power_cuts_in_a_round_and_its_release(
    built: Built, machine: UnicornMachine, prepared: str
) -> None:
    foreign = prepared.startswith("another")
    machine.call("become_model", OTHER_MODEL if foreign else MODEL)
    for version in PREPARED[prepared]:
        if version > 0:
            assert machine.call("stage_and_commit", version) == OK
        else:
            assert machine.call("release", -version) == OK
    machine.call("become_model", MODEL)
    current, candidate = versions(machine)
    slots = ("slot_a", "slot_b")
    before = region_content(machine, built.layout, *slots)
    start = machine.flash_operations
    assert machine.call("stage_and_commit", 3) == OK
    committing = machine.flash_operations - start
    assert machine.call("release", 3) == OK
    operations = machine.flash_operations - start
    assert operations == committing + 1 > WEIGHTS_BYTES // 4
    for cut in [*range(1, committing, 5), committing - 1, committing, operations]:
        put_back(machine, built.layout, before, *slots)
        machine.cut_power_at_flash_operation(cut, seed=cut)
        if cut > committing:
            assert machine.call("stage_and_commit", 3) == OK
        with pytest.raises(MachineFault, match="power cut"):
            machine.call("release" if cut > committing else "stage_and_commit", 3)
        restarted(machine)
        now = versions(machine)
        if cut <= committing:
            assert now[0] == current
            assert now[1] in ((candidate, 3) if current == 0 else (candidate, 3, 0))
            assert now[1] != 3 or cut == committing
        else:
            assert now in ((current, 3), (3, 0))
        if 3 not in now:
            assert machine.call("stage_and_commit", 3) == OK
            assert versions(machine) == (current, 3)
        assert machine.call("release", 3) == OK
        assert versions(machine) == (3, 0)


def garbage(size: int, seed: int) -> bytes:
    """As of demonstrations that a board came with: some of it erased."""
    draw = random.Random(seed)
    return b"".join(draw.choice([b"\xff" * 512, draw.randbytes(512)]) for _ in range(size // 512))


@pytest.mark.parametrize("seed", range(3))
def test_a_flash_full_of_garbage_is_as_good_as_an_erased_one(
    make_machine: MakeMachine, built: Built, seed: int
) -> None:
    content = [
        (region.address, garbage(region.bytes, seed * 10 + number))
        for number, region in enumerate(built.layout.stores.values())
    ]
    machine = booted(make_machine(flash_content=content))
    assert versions(machine) == (0, 0)
    assert machine.call("samples") == machine.call("lease") == 0
    assert machine.call("identity") == 0xFFFFFFFF
    for version in (1, 2, 3):
        released(machine, version)
        assert machine.call("record", version, 1) == OK
        assert machine.call("raise_lease", version) == OK
        assert versions(machine) == (version, 0)
        assert machine.call("samples") == machine.call("lease") == version


def test_a_version_of_another_model_is_left_alone_until_its_slot_is_needed(
    machine: UnicornMachine,
) -> None:
    released(machine, 1)
    assert machine.call("record", 5, 4) == OK
    machine.call("become_model", OTHER_MODEL)
    assert versions(machine) == (0, 0)
    assert machine.call("samples") == 0
    machine.call("become_model", MODEL)
    assert versions(machine) == (1, 0)
    assert machine.call("samples") == 4
    machine.call("become_model", OTHER_MODEL)
    for version in (2, 3):
        released(machine, version)
        assert versions(machine) == (version, 0)
    machine.call("become_model", MODEL)
    assert versions(machine) == (0, 0)


@pytest.mark.parametrize("place", [20, 4096 + 401, 60], ids=["header", "payload", "commit word"])
def test_a_damaged_version_gives_way_to_the_one_before(
    machine: UnicornMachine, built: Built, place: int
) -> None:
    """One bit that has faded is enough."""
    released(machine, 1)
    released(machine, 2)
    at = built.layout.slot_b.address + place
    machine.write_flash(at, bytes([machine.read_memory(at, 1)[0] ^ 4]))
    assert versions(machine) == (1, 0)
    released(machine, 2)
    assert versions(machine) == (2, 0)


def test_filling_and_erasing_the_samples_touches_nothing_else(
    make_machine: MakeMachine, built: Built
) -> None:
    told = (built.layout.identity.address, identity_region(Identity("dev", "f", "secret")))
    machine = booted(make_machine(flash_content=[told]))
    released(machine, 1)
    assert machine.call("stage_and_commit", 2) == OK
    assert machine.call("raise_lease", 77) == OK
    others = ("identity", "journal", "slot_a", "slot_b")
    before = region_content(machine, built.layout, *others)
    capacity = built.layout.samples.bytes // (16 + SAMPLE_BYTES)
    for label in range(3):
        assert machine.call("record", label, capacity) == OK
    assert machine.call("samples") <= capacity
    assert machine.call("label_of", 0) == 2, "the newest stay"
    assert machine.call("erase_log") == OK
    assert machine.call("samples") == 0
    assert region_content(machine, built.layout, *others) == before
    assert machine.call("identity") == 0x86


@pytest.mark.parametrize("filled", [2, 84, 168])
def test_a_power_cut_costs_a_log_the_record_that_is_written_and_at_most_its_oldest_unit(
    machine: UnicornMachine, built: Built, filled: int
) -> None:
    assert machine.call("record", 1, filled) == OK
    count = machine.call("samples")
    before = region_content(machine, built.layout, "samples")
    start = machine.flash_operations
    assert machine.call("record", 3, 1) == OK
    operations = machine.flash_operations - start
    stay = machine.call("samples") - 1
    assert stay == (count if filled < 168 else 84), "a unit has 84, two make the log"
    for cut in range(1, operations + 1):
        put_back(machine, built.layout, before, "samples")
        machine.cut_power_at_flash_operation(cut, seed=cut)
        with pytest.raises(MachineFault, match="power cut"):
            machine.call("record", 3, 1)
        restarted(machine)
        found = machine.call("samples")
        assert stay <= found <= count or (found == stay + 1 and cut == operations)
        assert machine.call("record", 4, 1) == OK
        found = machine.call("samples")
        assert found >= stay + 1
        assert machine.call("label_of", found - 1) == 4


@pytest.mark.slow
def test_lease_and_notes_survive_power_cuts_also_while_the_journal_rotates(
    machine: UnicornMachine, built: Built
) -> None:
    unit = built.layout.journal.bytes // 2
    assert machine.call("raise_lease", 5) == OK
    for version in range(unit // 1032):
        assert machine.call("note", 200, version) == OK
    noted = machine.call("noted", 200)
    before = region_content(machine, built.layout, "journal")
    start = machine.flash_operations
    assert machine.call("note", 200, 99) == OK
    rotating = machine.flash_operations - start
    assert rotating > 2 * 1024 // 4, "the record before was carried along"
    assert machine.call("raise_lease", 6) == OK
    operations = machine.flash_operations - start
    for cut in [*range(1, rotating, 5), *range(rotating, operations + 1)]:
        put_back(machine, built.layout, before, "journal")
        machine.cut_power_at_flash_operation(cut, seed=cut)
        if cut > rotating:
            assert machine.call("note", 200, 99) == OK
        with pytest.raises(MachineFault, match="power cut"):
            machine.call(*(("raise_lease", 6) if cut > rotating else ("note", 200, 99)))
        restarted(machine)
        assert machine.call("noted", 200) in ((noted, 99) if cut <= rotating else (99,))
        assert machine.call("lease") in ((5,) if cut <= rotating else (5, 6))
        assert machine.call("note", 200, 99) == OK
        assert machine.call("raise_lease", 6) == OK
        assert machine.call("raise_lease", 4) == OK
        assert (machine.call("noted", 200), machine.call("lease")) == (99, 6)


def test_releasing_what_is_not_there_is_refused(machine: UnicornMachine) -> None:
    assert machine.call("release", 1) == NOT_FOUND
    assert machine.call("stage_and_commit", 1) == OK
    assert machine.call("release", 2) == NOT_FOUND
    assert versions(machine) == (0, 1)
    assert FLASH_FAILED not in (machine.call("release", 1), machine.call("release", 1))
