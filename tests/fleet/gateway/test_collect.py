"""`collect`: reports page by page, sums with the last of them, nothing computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest

from fleet.errors import GatewayError
from fleet.gateway.replies import PAGE
from fleet.protocol import topics
from tests.fleet.gateway.bench import Bench
from tests.fleet.gateway.deltas import CAMPAIGN, FLEET, GATEWAY, PLAN, announcement, delta_chunks

VALUES = 3


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def deliver(bench: Bench, *names: str) -> None:
    jobs = []
    for name in names:
        values = np.array([1, 2, len(name)], np.int32)
        for delta in delta_chunks(bench.task(name), values, 5):
            topic = topics.delta(FLEET, GATEWAY, name)
            jobs.append(bench.core.arrived(topic, delta.encode(), False))
    bench.run(*jobs)


def begin(bench: Bench, names: list[str], **changes: Any) -> None:
    payload = announcement().encode()
    jobs = [bench.core.arrived(topics.announce(FLEET, name), payload, False) for name in names]
    bench.run(*jobs)
    bench.start(names=names, values=VALUES, **changes)


def test_reports_come_once_each_while_the_round_runs_and_sums_at_its_end(bench: Bench) -> None:
    begin(bench, ["a", "b", "c"])
    deliver(bench, "b")
    first = bench.collect()
    assert [one["device"] for one in first["reports"]] == ["b"]
    assert (first["state"], first["accepted"], first["more"]) == ("running", 1, False)
    assert "sums" not in first
    deliver(bench, "c")
    second = bench.collect(cursor=first["cursor"])
    assert [one["device"] for one in second["reports"]] == ["c"]
    assert bench.collect(cursor=second["cursor"])["reports"] == []
    bench.crash()
    deliver(bench, "a")
    third = bench.collect(cursor=second["cursor"])
    assert [one["device"] for one in third["reports"]] == ["a"]
    assert third["state"] == "closed"
    assert third["sums"][PLAN][0]["devices"] == 3
    again = bench.collect(cursor=third["cursor"])
    assert again["reports"] == []
    assert again["sums"] == third["sums"]
    assert again["cursor"] == third["cursor"]


def test_a_cancelled_or_unknown_round_has_no_sums(bench: Bench) -> None:
    begin(bench, ["a"])
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    assert "sums" not in bench.collect()
    unknown = bench.ask("collect", campaign=CAMPAIGN, round=7)
    assert (unknown["state"], unknown["reports"], unknown["cursor"]) == ("unknown", [], 0)
    assert "sums" not in unknown


def test_collect_is_bounded_whatever_the_number_of_devices(bench: Bench) -> None:
    names = [f"cow-{number}" for number in range(PAGE + 20)]
    begin(bench, names)
    deliver(bench, *names)
    first = bench.collect()
    assert (first["state"], len(first["reports"]), first["more"]) == ("closed", PAGE, True)
    assert "sums" not in first, "they come once, with the last page"
    assert len(cbor2.dumps(first)) < 250_000
    second = bench.collect(cursor=first["cursor"])
    assert (len(second["reports"]), second["more"]) == (20, False)
    assert second["sums"][PLAN][0]["devices"] == len(names)
    told = [one["device"] for one in (*first["reports"], *second["reports"])]
    assert told == names


def test_a_report_tells_the_bytes_that_came_over_the_air(bench: Bench) -> None:
    values = np.arange(-400, 400, dtype=np.int32) * 1000
    payload = announcement().encode()
    bench.arrives(topics.announce(FLEET, "a"), payload)
    bench.start(names=["a"], values=800, uplink_chunk_bytes=512)
    chunks = [one.encode() for one in delta_chunks(bench.task("a"), values, 5)]
    assert len(chunks) > 2
    for one in (*chunks[:2], chunks[0], *chunks[2:]):
        bench.arrives(topics.delta(FLEET, GATEWAY, "a"), one)
    (report,) = bench.collect()["reports"]
    assert report["payload_bytes"] == sum(map(len, chunks))
    assert report == {
        "device": "a",
        "plan": PLAN,
        "status": "accepted",
        "train_samples": 5,
        "train_steps": 10,
        "held_out": 10,
        "correct_before": 4,
        "correct_after": 7,
        "correct_local": 0,
        "kept": 0,
        "loss_before": 1.5,
        "loss_after": 0.8,
        "coded_bytes": report["coded_bytes"],
        "payload_bytes": sum(map(len, chunks)),
        "seconds": 0.0,
    }


def test_explanations_are_the_last_hundred(bench: Bench) -> None:
    begin(bench, ["a"])
    for _ in range(120):
        bench.arrives(topics.delta(FLEET, GATEWAY, "a"), b"nonsense")
    reply = bench.collect()
    assert len(reply["explanations"]) == 100
    assert reply["refused"] == {"malformed": 120}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"campaign": "xyz"}, "campaign must be 16 hex digits"),
        ({"round": -1}, "round must be a number"),
        ({"round": True}, "round must be a number"),
        ({"cursor": -1}, "cursor must be 0 or what the last reply gave"),
    ],
)
def test_a_collect_that_makes_no_sense_is_refused_by_name(
    bench: Bench, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(GatewayError, match=named):
        bench.ask("collect", **{"campaign": CAMPAIGN, "round": 1, **fields})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"wait_seconds": 6}, "wait_seconds must be 0 … 5"),
        ({"wait_seconds": "long"}, "wait_seconds must be 0 … 5"),
        ({"rounds": []}, "rounds must be a list of 1 … 1000"),
        ({"rounds": [[CAMPAIGN, 1]] * 1001}, "rounds must be a list of 1 … 1000"),
        ({"rounds": [[CAMPAIGN]]}, "isn't .campaign, round."),
        ({"rounds": [[7, 1]]}, "campaign must be 16 hex digits"),
        ({"rounds": [[CAMPAIGN, -1]]}, "round must be a number"),
    ],
)
def test_a_watch_that_makes_no_sense_is_refused_by_name(
    bench: Bench, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(GatewayError, match=named):
        bench.ask("watch", **{"rounds": [[CAMPAIGN, 1]], **fields})


def test_a_watch_counts_the_rounds_that_do_not_run(bench: Bench) -> None:
    begin(bench, ["a"])
    rounds = [[CAMPAIGN, 1], [CAMPAIGN, 7]]
    assert bench.ask("watch", rounds=rounds[:1]) == {"ended": 0}
    assert bench.ask("watch", rounds=rounds) == {"ended": 1}
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    assert bench.ask("watch", rounds=rounds) == {"ended": 2}
