"""Rounds whose deltas are masked and whose tasks are signed, as a gateway has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.errors import GatewayError
from fleet.gateway.requests import StartRequest
from fleet.gateway.rounds import RoundSpec
from fleet.protocol import Delta, ReceiptResult, Task, topics
from fleet.protocol.keys import (
    DeviceKeys,
    Keyring,
    SignedKeyring,
    SigningKey,
    exchange_public,
    unmaskers_digest,
)
from fleet.protocol.masking import (
    NONCE_BYTES,
    SEAL_BYTES,
    Binding,
    MaskParameters,
    Words,
    add,
    mask_delta,
    seed_of,
    stream,
)
from tests.fleet.gateway.bench import Bench
from tests.fleet.gateway.deltas import (
    FLEET,
    PLAN,
    announcement,
    delta_chunks,
    start_fields,
    tasks,
)

NAMES = ["a", "b", "c", "d"]
VALUES = 300
UNMASKERS = [exchange_public(bytes([number]) * 32) for number in (1, 2)]
DIGEST = unmaskers_digest(UNMASKERS)
KEYS = {name: DeviceKeys(name.encode() * 32, SigningKey.generate()) for name in NAMES}
AUTHORITY = SigningKey.generate()
KEYRING = SignedKeyring.sign(AUTHORITY, FLEET, Keyring(3, bytes(32), tuple(UNMASKERS))).encode()


def masks(bits: int = 16, **changes: Any) -> dict[str, Any]:
    return {
        "bits": bits,
        "value_bound": 100,
        "least_devices": 2,
        "unmaskers": len(UNMASKERS),
        "unmaskers_digest": DIGEST,
        **changes,
    }


def masked(**changes: Any) -> dict[str, Any]:
    """What a start says of a masked round beside the rest."""
    return {
        "coding": "masked",
        "weighting": "uniform",
        "values": VALUES,
        "masks": masks(changes.pop("bits", 16)),
        "target": 9,
        "uplink_chunk_bytes": 128,
        **changes,
    }


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce(*NAMES)
    yield made
    made.store.close()


def values_of(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).integers(-100, 101, VALUES).astype(np.int32)


def delta(bench: Bench, name: str, nonce: bytes = bytes(NONCE_BYTES)) -> list[Delta]:
    task = bench.task(name)
    parameters = MaskParameters.of(task)
    binding = Binding(
        FLEET, name, task.campaign, task.round, task.plan, task.weights, VALUES, parameters
    )
    made = mask_delta(KEYS[name].exchange, UNMASKERS, nonce, values_of(name), binding)
    chunks = delta_chunks(task, values_of(name), 7, coded_all=made.encode(parameters.bits))
    assert len(chunks) > 1
    return chunks


def streams_of(names: list[str], bits: int, nonce: bytes = bytes(NONCE_BYTES)) -> Words:
    total = np.zeros(VALUES, np.uint32)
    for name in names:
        for key in UNMASKERS:
            seed = seed_of(KEYS[name].exchange, nonce, key)
            total = add(total, stream(seed, VALUES, bits), bits)
    return total


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_masked_sums_are_modulo_the_masks_bits_also_after_crashes(bench: Bench, bits: int) -> None:
    bench.start(names=NAMES, **masked(bits=bits))
    for name in NAMES:
        # A crash at each instant: with deltas that are coded on disk, and with a sum of some.
        bench.crash()
        bench.send(name, delta(bench, name))
    answer = bench.closed()
    (one,) = answer["sums"][PLAN]
    assert (one["devices"], one["weight"]) == (4, 4)
    found = np.frombuffer(one["values"], "<i8")
    assert found.min() >= 0
    assert found.max() < 1 << bits
    left = (found - streams_of(NAMES, bits).astype(np.int64)) % (1 << bits)
    wanted = sum(values_of(name).astype(np.int64) for name in NAMES) % (1 << bits)
    assert np.array_equal(left, wanted)


def test_nonce_and_seals_of_the_delta_that_counted_are_told_and_no_others(bench: Bench) -> None:
    bench.start(names=NAMES, **masked())
    first = delta(bench, "a", b"first-nonce!")
    bench.send("a", first)
    receipt = bench.send("a", delta(bench, "a", b"other-nonce!"))
    assert receipt is not None
    assert receipt.coded_crc32 == first[0].coded_crc32, "made again after a reset: counted is this"
    bench.crash()
    (report,) = bench.closed()["reports"]
    assert report["nonce"] == b"first-nonce!"
    coded = b"".join(one.coded for one in first)
    assert report["seals"] == coded[NONCE_BYTES : NONCE_BYTES + len(UNMASKERS) * SEAL_BYTES]
    (one,) = bench.collect()["sums"][PLAN]
    masked_values = np.frombuffer(coded[NONCE_BYTES + len(UNMASKERS) * SEAL_BYTES :], "<u2")
    assert np.array_equal(np.frombuffer(one["values"], "<i8"), masked_values)


def test_a_masked_delta_of_another_length_is_refused(bench: Bench) -> None:
    bench.start(names=NAMES, **masked())
    whole = b"".join(one.coded for one in delta(bench, "a"))
    for coded in (whole[:-1], whole + b"x", whole[:-2], b""):
        made = delta_chunks(bench.task("a"), values_of("a"), 7, coded_all=coded)
        receipt = bench.send("a", made)
        assert receipt is not None
        assert receipt.result == ReceiptResult.REFUSED
    assert bench.refused() == {"coding": 4}


def test_devices_are_in_the_part_that_the_start_deals_them_to(bench: Bench) -> None:
    dealt = tasks(dict.fromkeys(NAMES, 1))
    for number, name in enumerate(NAMES):
        dealt["devices"][name] += [0.0, b"", number % 3]
    fold = {"name": "dealt", "count": 4}
    bench.start(names=NAMES, **masked(tasks=[dealt], fold=fold))
    for name in NAMES:
        bench.send(name, delta(bench, name))
    parts = bench.closed()["sums"][PLAN]
    assert [one["devices"] for one in parts] == [2, 1, 1, 0]
    assert parts[3]["values"] == b"", "of nobody there are no zeros to be told"


def test_a_task_has_its_signature_and_the_keyring_where_the_device_has_an_older_one(
    bench: Bench,
) -> None:
    bench.announce("b", keyring=3)
    bench.announce("c", keyring=2)
    signed = tasks(dict.fromkeys("abc", 1))
    for name in "abc":
        signed["devices"][name] += [0.0, name.encode() * 64]

    bench.start(names=list("abc"), **masked(tasks=[signed], keyring=KEYRING, personal=2))
    published = bench.link.published
    told = {
        topics.parse(one.topic).device: Task.decode(one.payload)
        for one in published
        if one.topic.endswith("/task") and one.payload
    }
    assert {name: task.signature for name, task in told.items()} == {
        name: name.encode() * 64 for name in "abc"
    }
    assert {name: task.keyring for name, task in told.items()} == {
        "a": KEYRING,
        "b": b"",
        "c": KEYRING,
    }
    assert {task.personal for task in told.values()} == {2}
    assert {task.unmaskers for task in told.values()} == {DIGEST}
    assert {MaskParameters.of(task) for task in told.values()} == {
        MaskParameters(16, 100, least_devices=2)
    }


def parse(**changes: Any) -> StartRequest:
    return StartRequest.parse(start_fields(["a"], **{**masked(), **changes}))


def test_a_masked_round_comes_back_from_the_store_as_it_was() -> None:
    spec = parse(keyring=KEYRING, personal=1).spec
    assert RoundSpec.decode(spec.encode()) == spec


def test_newer_keys_make_no_other_round_and_other_masks_do() -> None:
    signed = tasks({"a": 1})
    signed["devices"]["a"] += [0.0, b"s" * 64]
    assert parse(tasks=[signed], keyring=KEYRING).content == parse().content
    others = [
        {"masks": masks(24)},
        {"masks": masks(unmaskers_digest=b"other!!!")},
        {"masks": masks(least_devices=9)},
        {"personal": 1},
    ]
    assert len({parse(**one).content for one in others} | {parse().content}) == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"masks": None}, "masks go with the coding masked"),
        ({"coding": "rice"}, "masks go with the coding masked"),
        ({"weighting": "samples"}, "weighting uniform"),
        ({"masks": masks(17)}, "masks have 8, 16, 24 or 32"),
        ({"masks": masks(norm_share=4)}, "wants a clip"),
        ({"masks": masks(unmaskers=4)}, "unmaskers"),
        ({"masks": masks(unmaskers_digest=b"short")}, "unmaskers_digest"),
        ({"keyring": KEYRING[:-1]}, "keyring"),
        ({"tasks": [{**tasks({}), "devices": {"a": [1, 9, 0.0, b"s" * 65]}}]}, "devices"),
        ({"tasks": [{**tasks({}), "devices": {"a": [1, 9, 0.0, b"", 1]}}]}, "part 1"),
        ({"tasks": [{**tasks({}), "devices": {"a": [1, 9, 0.0, b"", 0, 0]}}]}, "devices"),
    ],
)
def test_a_masked_start_that_cannot_be_is_refused_by_what_is_wrong(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(GatewayError, match=named):
        parse(**changes)


def test_hello_tells_which_keys_a_device_follows(bench: Bench) -> None:
    bench.arrives(topics.announce(FLEET, "a"), announcement(keyring=5).encode())
    told = {one["device"]: one["keyring"] for one in bench.ask("hello", cursor=0)["devices"]}
    assert (told["a"], told["b"]) == (5, 0)
