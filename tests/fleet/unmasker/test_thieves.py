"""What whoever has some of the keys can do with them, where docs/design/threats.md says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import MaskRefusedError
from fleet.protocol import masking
from fleet.protocol.keys import DeviceKeys
from fleet.protocol.mask_requests import MaskMember
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from fleet.unmasker.logic import near_sets
from tests.fleet.unmasker.herd import FLEET, PRIVATE, PUBLIC, Cow, asked, blank, digest, unmasked

COWS = [Cow(f"cow-{number}") for number in range(5)]
LEAST = 4


def unmasker_of(store: UnmaskerStore) -> LocalUnmasker:
    return LocalUnmasker(PRIVATE, FLEET, store, LEAST)


def test_a_gateway_and_an_unmasker_together_read_each_delta_and_one_of_them_none() -> None:
    cow, of = COWS[0], blank()
    delta, values = cow.delta(of, [PUBLIC]), cow.values(of).tolist()
    binding = of.binding(FLEET, cow.name)
    key = cow.keys.exchange_public
    shared = masking.seal_key(PRIVATE, key, key, PUBLIC)
    seed = masking.unseal(shared, delta.nonce, delta.seals[0], binding)
    assert seed is not None
    stream = masking.stream(seed, of.values, of.parameters.bits)
    assert unmasked(delta.values, stream, of.parameters.bits).tolist() == values
    # What the gateway alone has: values that any stream could have made of any others.
    assert masking.centred(delta.values, of.parameters.bits).tolist() != values
    strangers = masking.seal_key(digest("gateway"), key, key, PUBLIC)
    assert masking.unseal(strangers, delta.nonce, delta.seals[0], binding) is None


def test_who_enrols_devices_can_fill_a_set_and_read_the_one_that_isnt_theirs() -> None:
    """The trust that is left: only the enrolment tells an invented device from a real one."""
    victim, of = COWS[0], blank()
    invented = {f"ghost-{number}": DeviceKeys.generate() for number in range(LEAST - 1)}
    store = UnmaskerStore()
    store.enrol(
        [victim.enrolment(), *(keys.enrol(FLEET, name) for name, keys in invented.items())],
        FLEET,
        0.0,
    )
    delta = victim.delta(of, [PUBLIC])
    total, members = delta.values, [MaskMember(victim.name, delta.nonce, delta.seals[0])]
    for name, keys in invented.items():
        zeros = np.zeros(of.values, np.int32)
        ghost = masking.mask_delta(
            keys.exchange, [PUBLIC], bytes(12), zeros, of.binding(FLEET, name)
        )
        total = masking.add(total, ghost.values, of.parameters.bits)
        members.append(MaskMember(name, ghost.nonce, ghost.seals[0]))
    request = replace(of, members=tuple(members))
    found = unmasked(total, unmasker_of(store).masks(request), of.parameters.bits)
    assert found.tolist() == victim.values(of).tolist()


def test_no_seed_seal_or_mask_of_a_set_is_on_an_unmaskers_disk(tmp_path: Path) -> None:
    store = UnmaskerStore(tmp_path / "unmasker.sqlite")
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    request, _ = asked(COWS, blank(), PUBLIC)
    masks = unmasker_of(store).masks(request)
    secrets = [masking.pack(masks, request.parameters.bits), PRIVATE]
    for cow, one in zip(COWS, request.members, strict=True):
        seed = masking.seed_of(cow.keys.exchange, one.nonce, PUBLIC)
        secrets += [seed, one.seal, one.nonce, cow.keys.exchange]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert not [one for one in secrets if one in content or one.hex().encode() in content]
    store.close()


def test_a_devices_key_opens_its_own_recorded_deltas_and_no_others() -> None:
    mine, other, of = COWS[0], COWS[1], blank()
    for cow in (mine, other):
        delta = cow.delta(of, [PUBLIC])
        # What somebody has recorded at the broker: the nonce is in it, in the clear.
        seed = masking.seed_of(mine.keys.exchange, delta.nonce, PUBLIC)
        stream = masking.stream(seed, of.values, of.parameters.bits)
        found = unmasked(delta.values, stream, of.parameters.bits)
        assert (found.tolist() == cow.values(of).tolist()) == (cow is mine)


def test_a_devices_key_makes_masked_deltas_of_that_device_alone() -> None:
    store = UnmaskerStore()
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    request, _ = asked(COWS, blank(), PUBLIC)
    binding = request.binding(FLEET, "cow-1")
    forged = masking.mask_delta(
        COWS[0].keys.exchange, [PUBLIC], bytes(12), np.zeros(request.values, np.int32), binding
    )
    members = list(request.members)
    members[1] = MaskMember("cow-1", forged.nonce, forged.seals[0])
    with pytest.raises(MaskRefusedError, match=r"broken-seal.*cow-1"):
        unmasker_of(store).masks(replace(request, members=tuple(members)))


def test_a_round_repeated_without_one_device_gives_it_away_and_unmaskers_see_it() -> None:
    """Masks hide nobody from who may say what is trained: that takes noise of the devices."""
    store = UnmaskerStore()
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    unmasker = unmasker_of(store)
    learnt = {cow.name: cow.values(blank()) for cow in COWS}  # from the same weights and samples
    sums = []
    for number, cows in ((1, COWS), (2, COWS[1:])):
        of, total, members = blank(round=number), np.zeros(blank().values, np.uint32), []
        for cow in cows:
            delta = masking.mask_delta(
                cow.keys.exchange,
                [PUBLIC],
                digest(cow.name, number)[:12],
                learnt[cow.name],
                of.binding(FLEET, cow.name),
            )
            total = masking.add(total, delta.values, of.parameters.bits)
            members.append(MaskMember(cow.name, delta.nonce, delta.seals[0]))
        request = replace(of, members=tuple(members))
        sums.append(unmasked(total, unmasker.masks(request), of.parameters.bits))
    assert (sums[0] - sums[1]).tolist() == learnt["cow-0"].tolist()
    (near,) = near_sets(store.sets(), LEAST)
    assert near.devices == ("cow-0",)


def test_a_coordinator_gets_sums_of_whole_sets_whatever_it_asks() -> None:
    """S and S without i, other parameters, small sets, other rounds' seals: one sum, no other."""
    store = UnmaskerStore()
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    unmasker = unmasker_of(store)
    request, total = asked(COWS, blank(), PUBLIC)
    told = [unmasker.masks(request)]
    tries = [
        *(
            replace(request, members=request.members[:at] + request.members[at + 1 :])
            for at in range(5)
        ),
        *(replace(request, members=request.members[:size]) for size in range(1, 4)),
        *(replace(request, round=number) for number in (0, 2)),
        *(replace(request, values=size) for size in (1, 19)),
        replace(request, parameters=replace(request.parameters, bits=8)),
        replace(request, parameters=replace(request.parameters, least_devices=0)),
        replace(request, parameters=replace(request.parameters, noise_variance=9)),
        request,
    ]
    for one in tries:
        try:
            told.append(unmasker.masks(one))
        except MaskRefusedError:
            continue
    assert len(told) == 2
    assert np.array_equal(*told)
    whole = sum(cow.values(request).astype(np.int64) for cow in COWS)
    assert unmasked(total, told[0], request.parameters.bits).tolist() == whole.tolist()
