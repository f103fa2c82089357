"""What an unmasker answers, and what it refuses with which reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fleet.errors import KeysError, MaskRefusedError, ProtocolError
from fleet.protocol import masking
from fleet.protocol.keys import DeviceKeys, exchange_public
from fleet.protocol.mask_requests import MaskMember, MaskRequest
from fleet.protocol.masking import MOST_DEVICES, MaskParameters
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from tests.fleet.unmasker.herd import (
    FLEET,
    PARAMETERS,
    PRIVATE,
    PUBLIC,
    Cow,
    asked,
    blank,
    digest,
    unmasked,
)

COWS = [Cow(f"cow-{number}") for number in range(6)]


@pytest.fixture
def unmasker() -> LocalUnmasker:
    store = UnmaskerStore()
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    return LocalUnmasker(PRIVATE, FLEET, store, least_devices=3)


def refusal(unmasker: LocalUnmasker, request: MaskRequest) -> tuple[str, tuple[str, ...]]:
    before, sets = unmasker.store.refusals(), unmasker.store.sets()
    with pytest.raises(MaskRefusedError) as refused:
        unmasker.masks(request)
    kind = refused.value.kind
    assert unmasker.store.refusals() == {**before, kind: before.get(kind, 0) + 1}
    assert unmasker.store.sets() == sets, "a refusal leaves no other trace"
    return kind, refused.value.devices


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_what_devices_sent_less_their_masks_is_their_values_sum(
    unmasker: LocalUnmasker, bits: int
) -> None:
    of = blank(parameters=MaskParameters(bits, 20, least_devices=2))
    request, total = asked(COWS[:4], of, PUBLIC)
    found = unmasked(total, unmasker.masks(request), bits)
    assert found.tolist() == sum(cow.values(of).astype(np.int64) for cow in COWS[:4]).tolist()


def test_every_one_of_several_unmaskers_is_needed(unmasker: LocalUnmasker) -> None:
    private = digest("another unmasker")
    store = UnmaskerStore()
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    other = LocalUnmasker(private, FLEET, store, least_devices=3)
    both = [PUBLIC, exchange_public(private)]
    deltas = {cow.name: cow.delta(blank(), both) for cow in COWS[:3]}
    total = np.zeros(blank().values, np.uint32)
    requests = []
    for at in range(2):
        members = [MaskMember(name, one.nonce, one.seals[at]) for name, one in deltas.items()]
        requests.append(replace(blank(), members=tuple(members)))
    for delta in deltas.values():
        total = (total + delta.values) & 0xFFFF
    first, second = unmasker.masks(requests[0]), other.masks(requests[1])
    wanted = sum(cow.values(blank()).astype(np.int64) for cow in COWS[:3]).tolist()
    assert unmasked(total, (first + second) & 0xFFFF, 16).tolist() == wanted
    assert unmasked(total, first, 16).tolist() != wanted
    assert unmasked(total, second, 16).tolist() != wanted
    # A seal for one unmasker is none for another.
    assert refusal(unmasker, replace(requests[1], round=2))[0] == "broken-seal"


def test_the_same_request_has_the_same_answer_and_nothing_else_of_its_devices_has_any(
    unmasker: LocalUnmasker,
) -> None:
    request, _ = asked(COWS[:4], blank(), PUBLIC)
    answer = unmasker.masks(request)
    assert np.array_equal(unmasker.masks(request), answer)
    fewer, _ = asked(COWS[:3], blank(), PUBLIC)
    assert refusal(unmasker, fewer) == ("overlap", ("cow-0", "cow-1", "cow-2"))
    more, _ = asked(COWS[:5], blank(), PUBLIC)
    assert refusal(unmasker, more) == ("overlap", tuple(cow.name for cow in COWS[:4]))
    # Another delta of the same devices: one was made again after a reset.
    again, _ = asked(COWS[:4], blank(), PUBLIC, time=1)
    assert refusal(unmasker, again)[0] == "overlap"
    # Of another plan or with other noise: those are other sets of the same round.
    for change in ({"plan": digest("plan")}, {"weights": digest("weights")}):
        other, _ = asked(COWS[3:], blank(**change), PUBLIC)
        assert refusal(unmasker, other) == ("overlap", ("cow-3",))
    assert np.array_equal(unmasker.masks(request), answer)
    # Another round, or another campaign, is another matter.
    for change in ({"round": 2}, {"campaign": bytes(8)}):
        unmasker.masks(asked(COWS[:3], blank(**change), PUBLIC)[0])


def test_small_sets_are_refused_by_the_unmaskers_least_and_by_the_tasks(
    unmasker: LocalUnmasker,
) -> None:
    assert refusal(unmasker, asked(COWS[:2], blank(), PUBLIC)[0])[0] == "too-few"
    sized = blank(parameters=replace(PARAMETERS, noise_variance=4, least_devices=5))
    assert refusal(unmasker, asked(COWS[:4], sized, PUBLIC)[0])[0] == "too-few"
    # Who asks for fewer than devices were told has broken their seals.
    lied = replace(asked(COWS[:4], sized, PUBLIC)[0], parameters=PARAMETERS)
    assert refusal(unmasker, lied)[0] == "broken-seal"
    unmasker.masks(asked(COWS[:5], sized, PUBLIC)[0])


def test_devices_that_nobody_enrolled_or_that_were_revoked_count_for_nothing(
    unmasker: LocalUnmasker,
) -> None:
    request, _ = asked([*COWS[:3], Cow("fox")], blank(), PUBLIC)
    assert refusal(unmasker, request) == ("unknown-device", ("fox",))
    done, _ = asked(COWS[:3], blank(), PUBLIC)
    answer = unmasker.masks(done)
    unmasker.store.revoke("cow-1", 5.0)
    later, _ = asked(COWS[:3], blank(round=2), PUBLIC)
    assert refusal(unmasker, later) == ("unknown-device", ("cow-1",))
    # What was answered stays answered.
    assert np.array_equal(unmasker.masks(done), answer)
    unmasker.store.enrol([Cow("cow-1").enrolment()], FLEET, 6.0, replace=True)
    unmasker.masks(later)


def swapped(request: MaskRequest) -> MaskRequest:
    first, second, *others = request.members
    turned = (replace(first, seal=second.seal), replace(second, seal=first.seal))
    return replace(request, members=(*turned, *others))


def renamed(request: MaskRequest) -> MaskRequest:
    first, *others = request.members
    moved = replace(first, device="cow-5")
    return replace(request, members=(*others, moved))


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        renamed,
        lambda of: replace(of, round=2),
        lambda of: replace(of, campaign=bytes(8)),
        lambda of: replace(of, plan=digest("plan")),
        lambda of: replace(of, weights=digest("weights")),
        lambda of: replace(of, values=of.values - 1),
        lambda of: replace(of, parameters=replace(of.parameters, bits=8)),
        lambda of: replace(of, parameters=replace(of.parameters, value_bound=126)),
        lambda of: replace(of, parameters=replace(of.parameters, clip=9)),
        lambda of: replace(of, parameters=replace(of.parameters, clip=9, norm_share=1)),
        lambda of: replace(of, parameters=replace(of.parameters, noise_variance=9)),
        lambda of: replace(of, parameters=replace(of.parameters, least_devices=3)),
    ],
)
def test_a_seal_is_good_for_its_device_and_for_what_it_was_told_only(
    unmasker: LocalUnmasker, change: Callable[[MaskRequest], MaskRequest]
) -> None:
    request, _ = asked(COWS[:4], blank(), PUBLIC)
    kind, devices = refusal(unmasker, change(request))
    assert kind == "broken-seal"
    assert devices
    unmasker.masks(request)  # nothing was used up by the refusal


def test_invented_devices_fill_no_set(unmasker: LocalUnmasker) -> None:
    """A gateway that names enrolled devices, but has made their seals itself, is refused."""
    honest, _ = asked(COWS[:1], blank(), PUBLIC)
    forged, own = [], DeviceKeys.generate()
    for cow in COWS[1:4]:
        binding = blank().binding(FLEET, cow.name)
        key = masking.seal_key(own.exchange, PUBLIC, own.exchange_public, PUBLIC)
        forged.append(
            MaskMember(cow.name, bytes(12), masking.seal(key, bytes(12), bytes(32), binding))
        )
    request = replace(honest, members=(*honest.members, *forged))
    assert refusal(unmasker, request) == ("broken-seal", ("cow-1", "cow-2", "cow-3"))


def test_a_set_has_each_device_once_in_order_and_256_at_most() -> None:
    first, second = (MaskMember(name, bytes(12), bytes(48)) for name in ("a", "b"))
    for members in ((first, first), (second, first), ()):
        with pytest.raises(ProtocolError, match="devices"):
            replace(blank(), members=members)
    many = tuple(
        MaskMember(f"d-{number:04}", bytes(12), bytes(48)) for number in range(MOST_DEVICES + 1)
    )
    replace(blank(), members=many[:-1])
    with pytest.raises(ProtocolError, match="257 devices"):
        replace(blank(), members=many)


def test_an_enrolment_is_for_this_fleet_signed_and_never_replaced_by_accident(
    unmasker: LocalUnmasker,
) -> None:
    store = unmasker.store
    mine = DeviceKeys.generate().enrol(FLEET, "cow-0")
    with pytest.raises(KeysError, match="cow-0 has other keys here"):
        store.enrol([Cow("calf").enrolment(), mine], FLEET, 1.0)
    assert "calf" not in store.keys(["calf"]), "all or none"
    with pytest.raises(KeysError, match="of fleet stable"):
        store.enrol([Cow("calf").enrolment("stable")], FLEET, 1.0)
    with pytest.raises(KeysError, match="hasn't signed"):
        store.enrol([replace(mine, device="calf")], FLEET, 1.0)
    assert store.enrol([mine], FLEET, 1.0, replace=True) == ["cow-0"]
    assert store.enrol([mine], FLEET, 1.0) == []
    store.revoke("cow-0", 2.0)
    with pytest.raises(KeysError, match="was revoked here"):
        store.enrol([mine], FLEET, 3.0)
    with pytest.raises(KeysError, match="no device calf"):
        store.revoke("calf", 1.0)
