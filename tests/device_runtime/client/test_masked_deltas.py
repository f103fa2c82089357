"""A device with keys sends masked deltas: what unmaskers and gateway make of them."""

import ctypes
import zlib
from dataclasses import replace

import numpy as np
import pytest

from fleet.protocol import Action, Delta, DeviceState, Reason, Task
from fleet.protocol.numbers import Personal
from simulator.devices.flash_image import identity_region
from simulator.machines.host_structs import Secret

from ..host_device import IDENTITY, WIDE, World
from ..keyed import AUTHORITY, DEVICE_KEYS, Keys, clipped, coded_of
from ..tiny_round import Weights, clustered_data, expected_values, task_for, train, values_of
from .rounds import (
    ALL,
    BIASES,
    DATA,
    FACTORY,
    PERSONAL,
    finish_round,
    has_whole_delta,
    keyed_world,
    make_world,
    online,
)

KEYS = Keys()
TWO = replace(KEYS, unmaskers=(bytes([9]) * 32, bytes([10]) * 32))
TASK = task_for(ALL, FACTORY)
VALUES, WIDE_VALUES = 68, 10_244
WIDE_DATA = clustered_data(inputs=WIDE.inputs)


def learned() -> list[int]:
    """What rice would send."""
    before = Weights.parse(FACTORY)
    return expected_values(before, train(before, DATA, 7, 2, False), False).tolist()


def coded_in_rounds(world: World, task: Task) -> bytes:
    """All coded bytes of the delta that answers the task."""
    world.forget_published()
    world.give(task)
    return coded_of(finish_round(world))


@pytest.fixture
def world(library: ctypes.CDLL) -> World:
    return online(keyed_world(library, KEYS))


def test_a_masked_delta_unmasks_to_exactly_what_rice_would_have_sent(world: World) -> None:
    task = KEYS.masked(TASK)
    world.give(task)
    deltas = finish_round(world)
    coded = coded_of(deltas)
    assert len(coded) == deltas[0].coded_bytes == 12 + 48 + 2 * VALUES
    assert zlib.crc32(coded) == deltas[0].coded_crc32
    assert (deltas[0].coding, deltas[0].weighting) == (1, 1)
    assert KEYS.unmask(task, coded, VALUES).tolist() == learned()
    assert coded == KEYS.mask(task, coded[:12], learned())


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_bits": 8, "value_bound": 20},
        {"mask_bits": 24, "clip": 60, "norm_share": 500},
        {"mask_bits": 32, "clip": 1 << 20, "norm_share": 77, "noise_variance": 90_000},
        {"clip": 3, "noise_variance": 4},
    ],
)
@pytest.mark.parametrize("keys", [KEYS, TWO], ids=["one unmasker", "two"])
def test_clip_noise_and_widths_come_out_as_the_page_says(
    library: ctypes.CDLL, keys: Keys, changes: dict
) -> None:
    task = keys.masked(TASK, **changes)
    coded = coded_in_rounds(online(keyed_world(library, keys)), task)
    assert coded == keys.mask(task, coded[:12], learned())
    if "noise_variance" not in changes:
        assert keys.unmask(task, coded, VALUES).tolist() == clipped(learned(), task)


@pytest.mark.parametrize("chunk_bytes", [64, 1000, 7777])
def test_a_masked_delta_comes_in_chunks_and_again_as_the_same_bytes(
    wide_library: ctypes.CDLL, chunk_bytes: int
) -> None:
    made = make_world(wide_library, WIDE_DATA, WIDE, TWO.region(IDENTITY))
    world = online(made)
    task = TWO.masked(
        task_for(ALL, WIDE.factory), clip=900, noise_variance=99, uplink_chunk_bytes=chunk_bytes
    )
    world.receipt = lambda _: None
    world.give(task)
    world.run_until(lambda: has_whole_delta(world))
    first = world.of(Delta)
    world.forget_published()
    world.run_for(5)
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    world.run_until(lambda: has_whole_delta(world))
    assert world.of(Delta) == first
    before = Weights.parse(WIDE.factory)
    values = expected_values(before, train(before, WIDE_DATA, 7, 2, False), False)
    coded = coded_of(first)
    assert coded == TWO.mask(task, coded[:12], values.tolist())


def test_a_masked_delta_that_was_cut_off_comes_whole_over_the_next_connection(
    wide_library: ctypes.CDLL,
) -> None:
    world = online(make_world(wide_library, WIDE_DATA, WIDE, KEYS.region(IDENTITY)))
    world.give(KEYS.masked(task_for(ALL, WIDE.factory), clip=500, noise_variance=9))
    world.run_until(lambda: world.device.state == DeviceState.SENDING)
    for _ in range(3):
        world.device.run(world.now)
    assert len(world.device.take()) > 1000  # and these are lost with the connection
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    deltas = finish_round(world)
    assert zlib.crc32(coded_of(deltas)) == deltas[0].coded_crc32


def nonces_over(world: World, task: Task, rounds: int) -> list[bytes]:
    world.receipt = lambda _: None
    found = []
    for _ in range(rounds):
        world.forget_published()
        world.boot()
        world.run_until(lambda: bool(world.states()))
        world.give(task)
        world.run_until(lambda: has_whole_delta(world))
        found.append(coded_of(world.of(Delta)))
    return found


def test_a_device_that_was_reset_never_uses_a_nonce_again(world: World) -> None:
    task = KEYS.masked(TASK)
    sent = nonces_over(world, task, 6)
    counters = [int.from_bytes(coded[:4], "little") for coded in sent]
    assert counters == [1, 2, 3, 4, 5, 6]
    assert {tuple(KEYS.unmask(task, coded, VALUES)) for coded in sent} == {tuple(learned())}
    assert len({coded[60:] for coded in sent}) == 6


def test_a_nonce_is_spent_before_anything_of_it_is_sent(world: World) -> None:
    """The power goes in every flash operation between training and the first byte."""
    task = KEYS.masked(TASK)
    sent = nonces_over(world, task, 1)
    spent, cuts = {sent[0][:4]}, 0
    for operation in range(1, 40):
        world.forget_published()
        world.boot()
        world.device.cut_power(operation)
        world.run_for(3)
        cuts += not world.device.has_power
        world.device.cut_power(0)
        if not world.device.has_power:
            world.boot()
            world.run_until(lambda: has_whole_delta(world))
        nonce = coded_of(world.of(Delta)[-1:])[:4]
        assert nonce not in spent
        spent.add(nonce)
    assert cuts > 2


def test_a_nonce_is_of_the_boards_secrets_also_where_the_journal_was_erased(world: World) -> None:
    asked: list[int] = []

    @Secret
    def secret(_: int, place: "ctypes._Pointer[ctypes.c_uint8]", count: int) -> bool:
        asked.append(count)
        ctypes.memmove(place, bytes([len(asked)]) * count, count)
        return True

    world.device.setup.secret = secret
    task = KEYS.masked(TASK)
    journal = world.device.setup.regions.journal
    sent = []
    for _ in range(3):
        world.device.write_flash(journal.address, b"\xff" * journal.bytes)
        sent += nonces_over(world, task, 1)
    counted = (1).to_bytes(4, "little")
    assert [coded[:12] for coded in sent] == [counted + bytes([n]) * 8 for n in (1, 2, 3)]
    assert asked == [8, 8, 8]


def test_without_random_numbers_nothing_is_masked_and_a_plain_round_goes_on(world: World) -> None:
    world.device.setup.secret = Secret(lambda *_: False)
    world.boot()
    assert declined(online(world), KEYS.masked(TASK)) == Reason.NO_RANDOM_NUMBERS
    world.give(KEYS.sign(replace(TASK, round=2)))
    assert finish_round(world)


def test_a_device_that_cannot_advance_its_counter_sends_nothing(world: World) -> None:
    world.give(KEYS.masked(TASK))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    journal = world.device.setup.regions.journal
    world.device.write_flash(journal.address, b"\0" * journal.bytes)
    world.run_for(5)
    assert [status for status in world.states() if status[0] == DeviceState.DECLINED] == [
        (DeviceState.DECLINED, Reason.FLASH_FAILURE)
    ]
    assert not world.of(Delta)


@pytest.mark.parametrize("action", [Action.SCORE, Action.RELEASE])
def test_a_task_that_only_scores_has_no_coded_bytes_and_spends_no_nonce(
    world: World, action: Action
) -> None:
    task = KEYS.masked(task_for(ALL, FACTORY, action=action))
    world.give(task)
    (delta,) = finish_round(world)
    assert (delta.coded, delta.coded_bytes, delta.coding, delta.chunks) == (b"", 0, 1, 1)
    coded = coded_in_rounds(world, KEYS.masked(replace(TASK, round=2)))
    assert coded[:4] == (1).to_bytes(4, "little")


def declined(world: World, task: Task) -> Reason:
    world.give(task)
    world.run_until(lambda: (world.states() or [(0, 0)])[-1][0] == DeviceState.DECLINED)
    assert not world.of(Delta)
    return Reason(world.states()[-1][1])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask_bits": 12}, Reason.MALFORMED_TASK),
        ({"mask_bits": 0}, Reason.MALFORMED_TASK),
        ({"value_bound": 0}, Reason.MALFORMED_TASK),
        ({"noise_variance": 3}, Reason.MALFORMED_TASK),
        ({"norm_share": 5}, Reason.MALFORMED_TASK),
    ],
)
def test_a_masked_task_that_cannot_be_done_says_why(
    world: World, changes: dict, reason: Reason
) -> None:
    assert declined(world, KEYS.masked(TASK, **changes)) == reason


def test_masks_go_with_uniform_weights_only(world: World) -> None:
    task = KEYS.sign(replace(KEYS.masked(TASK), weighting=0))
    assert declined(world, task) == Reason.UNKNOWN_CODING


def test_a_device_with_other_unmaskers_declines(world: World) -> None:
    assert declined(world, KEYS.sign(TWO.masked(TASK))) == Reason.OTHER_UNMASKERS


def test_a_device_without_authority_or_without_keys_declines_masks(library: ctypes.CDLL) -> None:
    for region in (
        identity_region(IDENTITY, DEVICE_KEYS.encode()),
        identity_region(IDENTITY, None, AUTHORITY.public, KEYS.signed_keyring),
    ):
        world = online(keyed_world(library, KEYS, region))
        assert declined(world, KEYS.masked(TASK)) == Reason.OTHER_UNMASKERS


def test_keys_that_change_while_a_device_trains_end_the_round(world: World) -> None:
    """Its seeds would be sealed for unmaskers that the coordinator doesn't ask."""
    world.give(KEYS.masked(replace(TASK, epochs=200)))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    newer = replace(TWO, generation=2)
    world.give(replace(KEYS.sign(replace(TASK, round=0)), keyring=newer.signed_keyring))
    world.run_until(lambda: (DeviceState.DECLINED, Reason.OTHER_UNMASKERS) in world.states())
    assert not world.of(Delta)


def test_a_newer_keyring_ends_a_delta_that_waits_for_its_receipt(world: World) -> None:
    """Nobody is to have it whose unmasker isn't trusted any more, whatever becomes of the task that
    brought the keyring."""
    world.receipt = lambda delta: None
    world.give(KEYS.masked(TASK))
    world.run_until(lambda: has_whole_delta(world))
    same = replace(KEYS, generation=2)
    world.give(replace(KEYS.sign(replace(TASK, round=0)), keyring=same.signed_keyring))
    world.run_for(120)
    assert world.device.state == DeviceState.SENDING, "it has the same unmaskers"
    newer = replace(TWO, generation=3)
    world.forget_published()
    world.give(replace(KEYS.sign(replace(TASK, round=0)), keyring=newer.signed_keyring))
    world.run_until(lambda: (DeviceState.DECLINED, Reason.OTHER_UNMASKERS) in world.states())
    world.forget_published()
    world.run_for(600)
    assert not world.of(Delta)
    world.give(newer.sign(replace(TASK, round=2)))
    world.run_until(lambda: has_whole_delta(world))


def test_a_delta_in_the_clear_outlives_a_newer_keyring(world: World) -> None:
    world.receipt = lambda delta: None
    world.give(KEYS.sign(TASK))
    world.run_until(lambda: has_whole_delta(world))
    world.give(replace(TASK, keyring=replace(TWO, generation=2).signed_keyring))
    world.run_for(120)
    assert world.device.state == DeviceState.SENDING


def test_the_round_after_a_masked_one_may_be_plain_and_the_other_way_round(world: World) -> None:
    for round, masked in enumerate([True, False, True, False], start=1):
        task = replace(task_for(BIASES, FACTORY), round=round)
        coded = coded_in_rounds(world, KEYS.masked(task) if masked else KEYS.sign(task))
        assert len(coded) == 12 + 48 + 8 if masked else len(coded) < 12


def test_personal_tensors_stay_out_of_a_masked_delta(library: ctypes.CDLL) -> None:
    task = replace(task_for(PERSONAL, FACTORY), personal=Personal.BESIDE)
    plain = online(keyed_world(library, KEYS))
    plain.give(KEYS.sign(task))
    shared = values_of(finish_round(plain), VALUES - 4).tolist()
    masked = KEYS.masked(task)
    coded = coded_in_rounds(online(keyed_world(library, KEYS)), masked)
    assert len(coded) == 12 + 48 + 2 * len(shared)
    assert KEYS.unmask(masked, coded, len(shared)).tolist() == shared


def test_nothing_of_what_was_learned_is_on_the_line(world: World) -> None:
    """Two devices that learned the same send bytes that have nothing in common."""
    task = KEYS.masked(TASK)
    sent = [np.frombuffer(coded[60:], "<u2") for coded in nonces_over(world, task, 8)]
    same = [np.mean(one == other) for at, one in enumerate(sent) for other in sent[:at]]
    assert max(same) < 0.05
