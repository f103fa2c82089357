"""A start request is right as a whole or refused by name."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from fleet.errors import GatewayError
from fleet.gateway.requests import StartRequest
from fleet.gateway.rounds import PlanSpec, RoundSpec
from fleet.protocol import fields
from tests.fleet.gateway.deltas import PLAN, WEIGHTS, start_fields, tasks


def parse(**changes: Any) -> StartRequest:
    return StartRequest.parse(start_fields(["a"], **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"campaign": "xyz"}, "campaign"),
        ({"round": 2**32}, "round"),
        ({"action": "dance"}, "action"),
        ({"seed": 2**32}, "seed"),
        ({"target": 0}, "target"),
        ({"tasks": 7}, "tasks"),
        ({"tasks": []}, "tasks has 0 devices"),
        ({"tasks": [tasks({})]}, "tasks has 0 devices"),
        ({"tasks": [tasks({"a/b": 1})]}, "tasks.0.devices"),
        ({"tasks": [tasks({"a": -1})]}, "tasks.0.devices.a.0"),
        ({"tasks": [tasks({"a": 1.0})]}, "tasks.0.devices.a.0"),
        ({"tasks": [tasks({"a": 1}, samples=65536)]}, "tasks.0.devices.a.1"),
        ({"tasks": [{**tasks({}), "devices": {"a": [1]}}]}, "tasks.0.devices.a"),
        ({"tasks": [tasks({"a": 1}, delays={"a": -0.1})]}, "tasks.0.devices.a.2"),
        ({"tasks": [tasks({"a": 1}, delays={"a": 604_801})]}, "tasks.0.devices.a.2"),
        ({"tasks": [tasks({"a": 1}, delays={"a": float("nan")})]}, "tasks.0.devices.a.2"),
        ({"tasks": [tasks({"a": 1}), tasks({"a": 2})]}, "device a twice"),
        ({"plans": {}}, PLAN[:8]),
        ({"blobs": 7}, "blobs"),
        ({"plans": {PLAN: {"values": 1}, PLAN[:-1] + "0": {"values": 1}}}, "begin alike"),
        ({"blobs": [{"sha256": WEIGHTS, "data": b"other"}]}, "digest"),
        ({"blobs": [{"sha256": WEIGHTS, "data": b"other", "chunk_bytes": 512}]}, "chunk_bytes"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"coding": "masked"}, "coding"),
        ({"weighting": "loudness"}, "weighting"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"deadline_seconds": fields.DEADLINE_SECONDS.most + 1}, "deadline_seconds"),
        ({"check_in_seconds": 100}, "check_in_seconds"),
        ({"uplink_chunk_bytes": 20_000}, "uplink_chunk_bytes"),
        ({"chunk_bytes": 513}, "chunk_bytes"),
        ({"max_score_drop_permille": 3}, "max_score_drop_permille"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(GatewayError, match=named):
        parse(**changes)


@pytest.mark.parametrize("bounds", [[[4, 7]], [[2, 7], [4, 7]], [], [[5]], [[5, -1]], 7])
def test_bounds_that_do_not_cover_the_values_are_refused(bounds: Any) -> None:
    with pytest.raises(GatewayError, match="bounds"):
        parse(plans={PLAN: {"values": 5, "bounds": bounds}})


def test_weights_with_more_chunks_than_have_numbers_are_refused() -> None:
    data = bytes(16 * 65536 + 1)
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(GatewayError, match="65537 chunks, 65536 have numbers"):
        parse(blobs=[{"sha256": digest, "data": data}], chunk_bytes=16)


def test_a_round_comes_back_from_the_store_as_it_was() -> None:
    request = parse(
        plans={PLAN: {"values": 5, "bounds": [[2, 7], [3, 1000]]}},
        tasks=[tasks({"a": 4, "b": 5}, samples=9, delays={"b": 2.5})],
        fold={"name": "buckets", "count": 3},
        weighting="uniform",
        action="release",
    )
    spec = request.spec
    assert RoundSpec.decode(spec.encode()) == spec
    assert spec.plans == {bytes.fromhex(PLAN): PlanSpec(5, ((2, 7), (3, 1000)))}
    assert spec.tasks["a"].most_samples == 9
    assert spec.tasks["a"].lease == 4
    assert [spec.tasks[name].delay_seconds for name in "ab"] == [0, 2.5]


def test_what_is_left_out_is_as_if_nothing_had_been_said() -> None:
    said = parse(tasks=[tasks({"a": 4}, samples=9, delays={"a": 0})], personal=0, masks=None)
    assert parse(tasks=[tasks({"a": 4}, samples=9)]).content == said.content


def test_only_what_a_round_is_makes_its_content() -> None:
    assert parse().content == parse(blobs=[]).content
    others: list[dict[str, Any]] = [
        {"lease": 2},
        {"action": "score"},
        {"weighting": "uniform"},
        {"uplink_chunk_bytes": 64},
        {"fold": {"name": "buckets", "count": 2}},
        {"max_score_drop": 0.2},
        {"tasks": [tasks({"a": 1}, delays={"a": 1})]},
    ]
    contents = {parse(**changes).content for changes in others}
    assert len(contents | {parse().content}) == len(others) + 1
