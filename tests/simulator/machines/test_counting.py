from collections import Counter

import pytest
from unicorn import unicorn_const
from unicorn.unicorn_py3.unicorn import HOOK_CODE_CFUNC

from simulator.errors import ImageError
from simulator.machines.counting import InclusiveCounter, InstructionCounter, thumb_instructions
from simulator.machines.unicorn import UnicornMachine

MIX = (500, 1, 2, 3, 4, 5)


@pytest.fixture
def booted(machine: UnicornMachine) -> UnicornMachine:
    machine.run(200)
    return machine


def counted_one_by_one(machine: UnicornMachine, function: str, *arguments: int) -> Counter[str]:
    """The slow oracle: a hook before every instruction.

    Unicorn doesn't call it for predicated-false instructions, so an IT instruction counts with
    all of its slots, and the instructions in the slots don't count again.
    """
    counts: Counter[str] = Counter()
    slots_end = 0

    def length(address: int) -> int:
        return 4 if machine.read_memory(address, 2)[1] >= 0xE8 else 2

    def count(engine: object, address: int, size: int, _: object) -> None:
        nonlocal slots_end
        if address < slots_end <= address + 64:
            return
        counts[machine.image.function_at(address)] += 1
        slots_end = 0
        opcode = int.from_bytes(machine.read_memory(address, 2), "little")
        if opcode >> 8 == 0xBF and opcode & 0xF:
            slots = 4 - ((opcode & -opcode).bit_length() - 1)
            slots_end = address + 2
            for _slot in range(slots):
                slots_end += length(slots_end)
            counts[machine.image.function_at(address)] += slots

    handle = machine.add_hook(unicorn_const.UC_HOOK_CODE, HOOK_CODE_CFUNC(count))
    machine.call(function, *arguments)
    machine.remove_hook(handle)
    return counts


@pytest.mark.parametrize("rounds", [1, 2, 7, 1000])
def test_a_count_known_by_construction_is_met_with_predicated_instructions(
    booted: UnicornMachine, rounds: int
) -> None:
    with InstructionCounter(booted) as counter:
        booted.call("counted", rounds)
    assert counter.by_function() == {"counted": 6 + 13 * rounds}


def test_block_counts_equal_counts_of_single_instructions(booted: UnicornMachine) -> None:
    with InstructionCounter(booted) as counter:
        booted.call("mix", *MIX)
    assert counter.blocks < counter.total
    assert counter.by_function() == counted_one_by_one(booted, "mix", *MIX)


def test_counting_again_gives_the_same_count(booted: UnicornMachine) -> None:
    totals = []
    for _ in range(2):
        with InstructionCounter(booted) as counter:
            booted.call("mix", *MIX)
        totals.append(counter.total)
        booted.call("mix", 3, *MIX[1:])
    with InstructionCounter(booted) as counter:
        booted.call("mix", *MIX)
        counter.clear()
        booted.call("mix", *MIX)
    assert {*totals} == {counter.total}


def test_nothing_is_counted_outside_the_context(booted: UnicornMachine) -> None:
    with InstructionCounter(booted) as counter:
        pass
    booted.call("mix", *MIX)
    assert counter.total == 0


def test_a_function_counts_with_all_that_it_calls(booted: UnicornMachine) -> None:
    with InstructionCounter(booted) as plain:
        booted.call("mix", *MIX)
    assert plain.by_function()["clamp"] > 0
    with InclusiveCounter(booted, ["mix", "counted"]) as counter:
        booted.call("mix", *MIX)
    assert counter.by_function() == {"mix": plain.total, "counted": 0}
    assert counter.outside == 0


def test_what_runs_between_calls_of_the_function_is_outside(booted: UnicornMachine) -> None:
    with InstructionCounter(booted) as plain:
        booted.call("mix", *MIX)
    own = plain.by_function()
    with InclusiveCounter(booted, ["clamp"]) as counter:
        booted.call("mix", *MIX)
    assert counter.by_function() == {"clamp": own["clamp"]}
    assert counter.outside == own["mix"]


def test_calls_one_after_the_other_add_up(booted: UnicornMachine) -> None:
    with InclusiveCounter(booted, ["counted", "mix"]) as counter:
        for rounds in (2, 5):
            booted.call("counted", rounds)
            booted.call("mix", *MIX)
    assert counter.by_function()["counted"] == 2 * 6 + 13 * (2 + 5)
    assert counter.outside == 0


def test_calls_are_told_apart_by_their_first_argument(booted: UnicornMachine) -> None:
    with InclusiveCounter(booted, ["counted"]) as counter:
        for rounds in (2, 5, 2):
            booted.call("counted", rounds)
    assert counter.by_argument() == {("counted", 2): 2 * (6 + 13 * 2), ("counted", 5): 6 + 13 * 5}


def test_a_function_that_the_image_lacks_is_named(booted: UnicornMachine) -> None:
    with pytest.raises(ImageError, match="no symbol 'tf_nothing'"):
        InclusiveCounter(booted, ["tf_nothing"])


@pytest.mark.parametrize(
    ("code", "count"), [("", 0), ("00bf", 1), ("aff30080", 1), ("00bfaff30080704700f000f8", 4)]
)
def test_thumb_lengths(code: str, count: int) -> None:
    assert thumb_instructions(bytes.fromhex(code)) == count
