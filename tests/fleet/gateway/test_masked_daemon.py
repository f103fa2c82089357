"""A masked round over a real Mosquitto and a real gateway process, which is killed on the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fleet.campaign.answers import CollectAnswer
from fleet.campaign.sets import MaskedSet, unmasked
from fleet.protocol import Task
from fleet.protocol.keys import DeviceKeys, exchange_public, unmaskers_digest
from fleet.protocol.mask_requests import MaskMember, MaskRequest
from fleet.protocol.masking import NONCE_BYTES, Binding, MaskParameters, mask_delta
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from tests.fleet.gateway.deltas import CAMPAIGN, FLEET, GATEWAY, PLAN, WEIGHTS
from tests.fleet.gateway.site import Site, Train

VALUES = 2606
PRIVATE = bytes(range(32))
UNMASKER = exchange_public(PRIVATE)
PARAMETERS = MaskParameters(16, 300, least_devices=3)
NAMES = [f"cow-{number}" for number in range(5)]
KEYS = {name: DeviceKeys.generate() for name in NAMES}


def values_of(name: str) -> NDArray[np.int32]:
    return np.random.default_rng(len(name) + ord(name[-1])).integers(-300, 301, VALUES, np.int32)


def trains(name: str) -> Train:
    return lambda task: (values_of(name), 9)


def masks(name: str) -> Callable[[Task, NDArray[np.int32]], bytes]:
    def code(task: Task, values: NDArray[np.int32]) -> bytes:
        assert MaskParameters.of(task) == PARAMETERS
        binding = Binding(
            *(FLEET, name, task.campaign, task.round, task.plan, task.weights, VALUES), PARAMETERS
        )
        nonce = name.encode().ljust(NONCE_BYTES, b"\0")
        return mask_delta(KEYS[name].exchange, [UNMASKER], nonce, values, binding).encode(16)

    return code


def test_what_is_unmasked_is_the_sum_of_who_was_counted_though_the_gateway_was_killed(
    make_site: Callable[[list[str]], Site],
) -> None:
    site = make_site(NAMES)
    for name in NAMES[:-1]:
        device = site.add(name, trains(name))
        device.code = masks(name)
    late = site.add(NAMES[-1])
    fields = {
        "values": VALUES,
        "coding": "masked",
        "weighting": "uniform",
        "uplink_chunk_bytes": 1024,
        "target": 4,
        "masks": {
            "bits": 16,
            "value_bound": 300,
            "least_devices": 3,
            "unmaskers": 1,
            "unmaskers_digest": unmaskers_digest([UNMASKER]),
        },
    }
    killed = site.devices[NAMES[0]]
    killed.before_chunk = lambda chunk: site.kill_gateway() if chunk == 2 else None
    assert site.start(**fields)["devices"] == {}
    site.until(lambda: site.process is not None and site.process.poll() is not None, "it is killed")
    killed.before_chunk = lambda chunk: None
    site.start_gateway()
    answer = CollectAnswer.parse(GATEWAY, site.collect_closed())
    assert late.receipts.empty()
    assert answer.accepted == 4
    assert answer.sums is not None

    store = UnmaskerStore()
    store.enrol([keys.enrol(FLEET, name) for name, keys in KEYS.items()], FLEET, 0.0)
    members = tuple(sorted(answer.reports, key=lambda one: one.device))
    request = MaskRequest(
        bytes.fromhex(CAMPAIGN),
        1,
        bytes.fromhex(PLAN),
        bytes.fromhex(WEIGHTS),
        VALUES,
        PARAMETERS,
        tuple(MaskMember(one.device, one.nonce, one.seals) for one in members),
    )
    streams = LocalUnmasker(PRIVATE, FLEET, store, 2).masks(request)
    (part,) = answer.sums[PLAN]
    values = np.frombuffer(part.values, "<i8").astype(np.uint32)
    found = unmasked(MaskedSet(PLAN, 0, members, values), [streams], PARAMETERS)
    assert found.values is not None
    wanted = sum(values_of(name).astype(np.int64) for name in NAMES[:-1])
    assert np.array_equal(found.values, wanted)
