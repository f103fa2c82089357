"""What a device learns for itself: how it is trained, kept, compared and used, and never sent."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fleet.protocol import Action, Delta, DeviceState, Reason, Status, Task
from fleet.protocol.numbers import KEPT_WITH_LOCAL, KEPT_WITH_PERSONAL, Kept, Personal

from ..host_device import FLASH_ADDRESS, SMALL, World, build_library
from ..tiny_round import CLASSES, INPUTS, Data, Weights, shuffled, task_for, values_of
from .rounds import (
    ALL,
    DATA,
    FACTORY,
    PERSONAL,
    decline_of,
    digest_of,
    finish_round,
    make_world,
    online,
    publish_blob,
    trained,
)

BIAS_STEP = 4000
SHARED_VALUES = CLASSES * INPUTS
BASE = trained()
BLOB = BASE.blob()


def changed_labels() -> Data:
    """Of somebody to whom things mean something else: biases alone help, but not enough."""
    labels = DATA.labels.copy()
    labels[DATA.labels == 1] = 2
    labels[DATA.labels == 3] = 0
    return Data(DATA.samples, labels)


OWN = changed_labels()
HELD_OUT = OWN.part(held_out=True)
MIXES = (256, 192, 128, 64)


def train(
    start: Weights, data: Data, seed: int, epochs: int = 2, updates: str = "shared personal"
) -> Weights:
    """The perceptron of tiny_model.c, plan 3."""
    weights = Weights(start.matrix.copy(), start.biases.copy())
    part = data.part(held_out=False)
    for epoch in range(epochs):
        for index in shuffled(len(part.labels), seed, epoch):
            sample, label = part.samples[index].astype(np.int64), part.labels[index]
            best = int(np.argmax(weights.scores(part.samples[index])))
            if best != label and "shared" in updates:
                weights.matrix[label] += sample >> 3
                weights.matrix[best] -= sample >> 3
            if best != label and "personal" in updates:
                weights.biases[label] += BIAS_STEP
                weights.biases[best] -= BIAS_STEP
    return weights


def mixed(base: Weights, biases: NDArray[np.int64], mix: int) -> Weights:
    moved = base.biases + ((biases - base.biases) * mix + 128 >> 8)
    return Weights(base.matrix.copy(), moved)


def quality(weights: Weights, data: Data = HELD_OUT) -> tuple[int, int]:
    """Right answers, and the loss, to be compared: the first is more, the second is less."""
    loss = 0
    for sample, label in zip(data.samples, data.labels, strict=True):
        scores = weights.scores(sample)
        loss += int(scores.max() - scores[label]) << 6
    return data.correct(weights), -loss


@dataclass
class Device:
    """A device with the weights of ``blob`` current, and the rounds that it is given."""

    world: World
    blob: bytes
    round: int = 0

    def do(self, personal: int, action: Action = Action.TRAIN, **changes: object) -> Delta:
        self.round += 1
        self.world.forget_published()
        task = task_for(
            PERSONAL, self.blob, action=action, personal=personal, round=self.round, **changes
        )
        self.world.give(task)
        deltas = finish_round(self.world)
        assert len(deltas) == 1
        return deltas[0]

    def release(self, blob: bytes, personal: int = Personal.NOTHING) -> Delta:
        self.blob = blob
        publish_blob(self.world, blob)
        return self.do(personal, Action.RELEASE)


def make_device(library: ctypes.CDLL, blob: bytes = BLOB, data: Data = OWN) -> Device:
    device = Device(online(make_world(library, data)), blob)
    device.release(blob)
    return device


@pytest.fixture
def device(library: ctypes.CDLL) -> Device:
    return make_device(library)


def matrix_change(after: Weights, before: Weights) -> NDArray[np.int64]:
    return (after.matrix - before.matrix).ravel()


def used(delta: Delta) -> Kept:
    return Kept(delta.kept & 0x3F)


# --- what is trained, kept and sent -------------------------------------------------------------


def test_personal_values_are_trained_beside_the_others_and_go_on_from_where_they_were(
    device: Device,
) -> None:
    first = train(BASE, OWN, 7)
    delta = device.do(Personal.BESIDE)
    assert np.array_equal(values_of([delta], SHARED_VALUES), matrix_change(first, BASE))
    assert delta.train_samples == len(OWN.part(held_out=False).labels)
    assert delta.correct_after == HELD_OUT.correct(first)
    # The next round has the version's matrix again, and the device's own biases.
    second = train(Weights(BASE.matrix, first.biases), OWN, 8)
    assert np.any(first.biases != BASE.biases)
    delta = device.do(Personal.BESIDE, seed=8)
    assert np.array_equal(values_of([delta], SHARED_VALUES), matrix_change(second, BASE))
    assert delta.correct_before == HELD_OUT.correct(BASE)


def test_frozen_personal_values_stay_those_of_the_version(device: Device) -> None:
    device.do(Personal.BESIDE)  # there are others in flash
    delta = device.do(Personal.FROZEN, seed=9)
    wanted = train(BASE, OWN, 9, updates="shared")
    assert np.array_equal(values_of([delta], SHARED_VALUES), matrix_change(wanted, BASE))


def test_a_task_that_asks_for_nothing_sends_personal_tensors_as_all_others(device: Device) -> None:
    device.do(Personal.BESIDE)
    delta = device.do(Personal.NOTHING, seed=4)
    wanted = train(BASE, OWN, 4)
    values = values_of([delta], SHARED_VALUES + CLASSES)
    assert np.array_equal(values[SHARED_VALUES:], wanted.biases - BASE.biases)
    assert (delta.correct_local, delta.kept) == (0, Kept.SHARED)


def test_personal_values_alone_are_trained_and_mixed_as_is_best_here(
    library: ctypes.CDLL,
) -> None:
    device = make_device(library)
    delta = device.do(Personal.ALONE)
    tuned = train(BASE, OWN, 7, updates="personal")
    choices = [mixed(BASE, tuned.biases, mix) for mix in MIXES]
    best = max(choices, key=lambda one: quality(one, HELD_OUT))
    assert (delta.train_samples, delta.coded_bytes) == (0, 0)
    assert delta.train_steps == 2 * len(OWN.part(held_out=False).labels)
    assert delta.correct_before == HELD_OUT.correct(BASE)
    assert delta.correct_after == HELD_OUT.correct(best) > delta.correct_before
    assert delta.kept == Kept.PERSONAL | KEPT_WITH_PERSONAL
    for sample in OWN.samples:
        assert device.world.device.infer(sample.tobytes()) == np.argmax(best.scores(sample))


def test_what_is_trained_here_alone_begins_with_the_factorys_weights(device: Device) -> None:
    first = train(Weights.parse(FACTORY), OWN, 7)
    delta = device.do(Personal.LOCAL)
    assert (delta.train_samples, delta.coded_bytes) == (0, 0)
    assert delta.correct_local == HELD_OUT.correct(first)
    assert delta.correct_after == delta.correct_before == HELD_OUT.correct(BASE)
    second = train(first, OWN, 8)
    delta = device.do(Personal.LOCAL, seed=8)
    assert delta.correct_local == HELD_OUT.correct(second)


# --- what is used -------------------------------------------------------------------------------


def test_a_device_uses_what_is_best_on_its_held_out_samples(library: ctypes.CDLL) -> None:
    device = make_device(library)
    device.do(Personal.BESIDE)
    delta = device.do(Personal.LOCAL)
    biases = train(BASE, OWN, 7).biases
    local = train(Weights.parse(FACTORY), OWN, 7)
    ways = {
        Kept.SHARED: BASE,
        Kept.PERSONAL: mixed(BASE, biases, 256),
        Kept.LOCAL: local,
    }
    scores = {kept: quality(of, HELD_OUT) for kept, of in ways.items()}
    best = max(scores, key=lambda kept: scores[kept])
    assert best != Kept.SHARED  # labels have changed
    for action in (Action.SCORE, Action.RELEASE):
        delta = device.do(Personal.BESIDE, action)
        assert used(delta) == best
        assert delta.correct_before == scores[Kept.SHARED][0]
        assert delta.correct_after == scores[Kept.PERSONAL][0]
        assert delta.correct_local == scores[Kept.LOCAL][0]
        assert delta.kept == best | KEPT_WITH_PERSONAL | KEPT_WITH_LOCAL
    for _ in range(2):
        for sample in OWN.samples:
            found = device.world.device.infer(sample.tobytes())
            assert found == np.argmax(ways[best].scores(sample))
        device.world.broker.retained.clear()
        device.world.boot()
        device.world.run_for(1)


def test_another_version_goes_with_the_personal_values_or_they_rest(device: Device) -> None:
    tuned = train(BASE, OWN, 7, updates="personal").biases
    mix = max(MIXES, key=lambda one: quality(mixed(BASE, tuned, one)))
    assert used(device.do(Personal.ALONE)) == Kept.PERSONAL
    # Ordinary releases of ordinary campaigns: the device looks for itself.
    learnt = train(BASE, OWN, 3, epochs=4)
    chosen = []
    for version in (Weights(learnt.matrix, tuned), Weights(BASE.matrix, BASE.biases + 1)):
        delta = device.release(version.blob())
        ways = {Kept.SHARED: version, Kept.PERSONAL: mixed(version, tuned, mix)}
        best = max(ways, key=lambda kept, ways=ways: quality(ways[kept]))
        assert used(delta) == best
        assert delta.correct_after == HELD_OUT.correct(ways[Kept.PERSONAL])
        for sample in OWN.samples:
            assert device.world.device.infer(sample.tobytes()) == np.argmax(
                ways[best].scores(sample)
            )
        chosen.append(best)
    assert chosen == [Kept.SHARED, Kept.PERSONAL]


def test_a_candidates_scores_say_nothing_about_what_the_application_has(
    library: ctypes.CDLL,
) -> None:
    device = make_device(library)
    device.do(Personal.ALONE)
    candidate = train(BASE, OWN, 5)
    publish_blob(device.world, candidate.blob())
    device.blob = candidate.blob()
    before = device.world.device.current_weights
    assert used(device.do(Personal.BESIDE, Action.SCORE)) == Kept.PERSONAL
    assert device.world.device.current_weights == before


# --- never sent ---------------------------------------------------------------------------------


def personal_bytes(device: Device) -> bytes:
    place, size = SMALL.address(7) - FLASH_ADDRESS, sum(SMALL.sectors[7:])
    return bytes(device.world.device.flash[place : place + size])


def masked(delta: Delta) -> Delta:
    """Without what a score is."""
    fields = ("correct_after", "correct_local", "kept", "loss_after_thousandths")
    return Delta(**{**delta.__dict__, **dict.fromkeys(fields, 0)})


@pytest.mark.parametrize(
    ("personal", "action"),
    [
        (Personal.FROZEN, Action.TRAIN),
        (Personal.ALONE, Action.TRAIN),
        (Personal.LOCAL, Action.TRAIN),
        (Personal.BESIDE, Action.SCORE),
        (Personal.BESIDE, Action.RELEASE),
        (Personal.NOTHING, Action.TRAIN),
    ],
)
def test_two_devices_that_differ_in_what_is_personal_alone_differ_in_scores_alone(
    library: ctypes.CDLL, personal: int, action: Action
) -> None:
    lines, deltas = [], []
    for data in (DATA, OWN):
        device = make_device(library)
        other = make_device(library, data=data)
        other.do(Personal.BESIDE)
        other.do(Personal.LOCAL)
        device.world.device.write_flash(SMALL.address(7), personal_bytes(other))
        device.world.broker.retained.clear()
        device.world.boot()
        online(device.world)
        device.world.run_for(1)
        device.world.line_up.clear()
        deltas.append(device.do(personal, action))
        lines.append(bytes(device.world.line_up))
    assert masked(deltas[0]) == masked(deltas[1])
    first, second = (
        line.replace(delta.encode(), b"") for line, delta in zip(lines, deltas, strict=True)
    )
    assert len(first) == len(lines[0]) - len(deltas[0].encode())
    # Byte by byte but for these numbers, some of which are shorter, and what counts their bytes.
    shorter = len(deltas[0].encode()) - len(deltas[1].encode())
    differ = [one - other for one, other in zip(first, second, strict=True) if one != other]
    assert differ == ([shorter] if shorter else [])


def test_no_personal_value_is_on_the_line_in_any_round(library: ctypes.CDLL) -> None:
    """Values are made so odd that their bytes are found wherever they are."""
    device = make_device(library)
    device.world.line_up.clear()
    for number in range(3):
        delta = device.do(Personal.BESIDE, seed=number)
        # There is room for no other value than the shared ones.
        values_of([delta], SHARED_VALUES)
    device.do(Personal.ALONE)
    device.do(Personal.LOCAL, seed=0, epochs=1)
    device.do(Personal.BESIDE, Action.RELEASE)
    for values in kept_values(device):
        odd = values[np.abs(values) > 1000]
        assert len(odd) >= 2
        for value in odd:
            for form in ("<h", ">h", "<i", ">i"):
                if abs(value) < 2**15 or form[1] == "i":
                    assert struct.pack(form, value) not in device.world.line_up, (value, form)
        assert values.astype("<i4").tobytes() not in device.world.line_up


def kept_bytes(device: Device) -> bytes:
    """What the newer unit has behind its header."""
    content = personal_bytes(device)
    units = [content[: len(content) // 2], content[len(content) // 2 :]]
    return max(units, key=lambda unit: int.from_bytes(unit[4:8], "little") % 0xFFFFFFFF)[128:]


def kept_values(device: Device) -> list[NDArray[np.int64]]:
    """Biases trained beside the others, and the model trained alone."""
    newest = kept_bytes(device)
    personal = np.frombuffer(newest[: 4 * CLASSES], "<i4").astype(np.int64)
    local = Weights.parse(newest[4 * CLASSES :][: len(FACTORY)])
    return [personal, np.concatenate([local.matrix.ravel(), local.biases])]


# --- what may go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("personal", [Personal.BESIDE, Personal.ALONE, Personal.LOCAL])
def test_a_power_cut_in_a_round_costs_nothing_but_the_round(
    library: ctypes.CDLL, personal: int
) -> None:
    def begun() -> Device:
        made = make_device(library, data=DATA)
        made.do(personal)
        made.world.broker.retained.clear()
        # Its samples mean something else from now on, so that the round changes what is kept.
        made.world.device.write_flash(SMALL.samples.address, OWN.region(SMALL.samples))
        made.world.boot()
        return Device(online(made.world), BLOB, made.round)

    whole = begun()
    before = whole.world.device.flash_operations
    wanted = whole.do(personal, seed=8), kept_bytes(whole)
    operations = whole.world.device.flash_operations - before
    assert operations > 4
    assert kept_bytes(begun()) != wanted[1]
    later = replace(whole.do(personal, seed=8), round=whole.round - 1), kept_bytes(whole)
    for cut in range(1, operations + 1):
        device = begun()
        device.world.device.cut_power(cut)
        device.round += 1
        device.world.forget_published()
        device.world.give(task_for(PERSONAL, BLOB, personal=personal, round=device.round, seed=8))
        device.world.run_until(lambda world=device.world: not world.device.has_power)
        device.world.boot()
        # What it had before or what it has trained; done again it goes on from there.
        assert (finish_round(device.world)[-1], kept_bytes(device)) in (wanted, later)


def test_unknown_uses_and_plans_without_personal_tensors_are_declined(world: World) -> None:
    online(world).give(task_for(PERSONAL, FACTORY, personal=5))
    assert decline_of(world) == Reason.MALFORMED_TASK
    world.give(task_for(ALL, FACTORY, personal=Personal.BESIDE, round=2))
    world.run_until(lambda: world.states()[-1][1] == Reason.NO_PERSONAL_TENSORS)


@pytest.mark.parametrize("define", ["MODEL_DIGEST", "PERSONAL_LAYOUT"])
def test_firmware_that_cannot_read_personal_values_says_so_and_works_without(
    library: ctypes.CDLL, tmp_path: Path, define: str
) -> None:
    other = build_library(tmp_path, defines={define: 77})
    device = make_device(library)
    assert used(device.do(Personal.ALONE)) == Kept.PERSONAL
    moved = make_world(other, OWN)
    moved.device.write_flash(SMALL.address(7), personal_bytes(device))
    moved.boot()
    online(moved)
    moved.run_for(20)
    assert (DeviceState.IDLE, Reason.PERSONAL_UNUSABLE) in moved.states()
    assert moved.states()[-1] == (DeviceState.IDLE, Reason.NONE)
    after = Device(moved, FACTORY)
    assert after.do(Personal.BESIDE, Action.SCORE).kept == Kept.SHARED
    # And its own values take their place.
    assert after.do(Personal.BESIDE).train_steps > 0
    moved.broker.retained.clear()
    moved.boot()
    online(moved)
    moved.run_for(20)
    assert (DeviceState.IDLE, Reason.PERSONAL_UNUSABLE) not in moved.states()[-2:]


def test_firmware_of_another_build_with_the_same_layout_keeps_them(library: ctypes.CDLL) -> None:
    device = make_device(library)
    wanted = device.do(Personal.ALONE)
    moved = Device(make_world(library, OWN), BLOB)
    moved.world.device.flash[:] = device.world.device.flash[:]
    moved.world.boot()
    online(moved.world)
    found = moved.do(Personal.BESIDE, Action.SCORE)
    assert (used(found), found.correct_after) == (used(wanted), wanted.correct_after)
    assert not [one for one in moved.world.of(Status) if one.reason == Reason.PERSONAL_UNUSABLE]


def test_the_same_round_with_another_use_is_another_task(device: Device) -> None:
    device.round += 1
    task = task_for(PERSONAL, BLOB, personal=Personal.BESIDE, round=device.round, epochs=100)
    device.world.give(task)
    device.world.run_until(lambda: device.world.device.state == DeviceState.TRAINING)
    device.world.forget_published()
    device.world.give(Task(**{**task.__dict__, "personal": Personal.ALONE, "epochs": 1}))
    (delta,) = finish_round(device.world)
    assert (delta.train_samples, delta.train_steps) == (0, len(OWN.part(False).labels))
    assert digest_of(BLOB)[:8] == delta.weights


def test_a_device_without_samples_stays_with_what_it_has_chosen(library: ctypes.CDLL) -> None:
    device = make_device(library)
    assert used(device.do(Personal.ALONE)) == Kept.PERSONAL
    empty = Device(make_world(library, Data(OWN.samples[:0], OWN.labels[:0])), BLOB)
    empty.world.device.flash[:] = device.world.device.flash[:]
    samples = SMALL.samples
    empty.world.device.write_flash(samples.address, b"\xff" * samples.bytes)
    empty.world.boot()
    online(empty.world)
    delta = empty.release(trained(seed=4).blob())
    assert (delta.held_out_samples, used(delta)) == (0, Kept.PERSONAL)
