from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import ProtocolError
from fleet.protocol import topics
from fleet.protocol.topics import Topic

names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=32)
SHA = bytes.fromhex("ab" * 32)
PREFIX = "ab" * 8


@given(names, names, names, st.integers(0, 65_535))
def test_every_topic_that_is_built_is_taken_apart_again(
    fleet: str, gateway: str, device: str, chunk: int
) -> None:
    assert topics.parse(topics.announce(fleet, device)) == Topic("announce", fleet, device)
    assert topics.parse(topics.task(fleet, device)) == Topic("task", fleet, device)
    assert topics.parse(topics.receipt(fleet, device)) == Topic("receipt", fleet, device)
    assert topics.parse(topics.status(fleet, device)) == Topic("status", fleet, device)
    delta = topics.parse(topics.delta(fleet, gateway, device))
    assert delta == Topic("delta", fleet, device, gateway)
    blob = topics.parse(topics.blob(fleet, SHA, chunk))
    assert blob == Topic("blob", fleet, prefix=SHA[:8], chunk=chunk)


def test_chunks_lie_in_groups_of_32_under_the_first_bytes_of_the_digest() -> None:
    assert topics.blob("f", SHA, 0) == f"fleet/f/blob/{PREFIX}/0/0"
    assert topics.blob("f", SHA, 31) == f"fleet/f/blob/{PREFIX}/0/31"
    assert topics.blob("f", SHA, 32) == f"fleet/f/blob/{PREFIX}/1/32"
    assert topics.any_of_group("f", SHA, 1) == f"fleet/f/blob/{PREFIX}/1/+"
    assert topics.any_chunk("f", SHA) == f"fleet/f/blob/{PREFIX}/+/+"
    assert topics.any_chunk("f") == "fleet/f/blob/+/+/+"


def test_one_filter_takes_everything_that_is_meant_for_a_device() -> None:
    base, _, wildcard = topics.to_device("f", "d").rpartition("/")
    assert wildcard == "+"
    assert {topics.task("f", "d"), topics.receipt("f", "d")} == {f"{base}/task", f"{base}/receipt"}


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fleet",
        "fleet/f/dev/d",
        "fleet/f/dev/d/other",
        "fleet/f/dev/d/task",
        "fleet/f/to/d/status",
        "fleet/f/to/d/task/more",
        "fleet/f/to/+/task",
        "fleet//to/d/task",
        "fleet/f/to//task",
        "fleet/f/gw/g/d/task",
        "fleet/f/gw/g/delta",
        f"fleet/f/blob/{PREFIX}/1",
        f"fleet/f/blob/{PREFIX}/0/01",
        f"fleet/f/blob/{PREFIX}/00/1",
        f"fleet/f/blob/{PREFIX}/0/-1",
        f"fleet/f/blob/{PREFIX}/0/²",
        f"fleet/f/blob/{PREFIX}/0/32",
        f"fleet/f/blob/{PREFIX}/1/31",
        f"fleet/f/blob/{PREFIX}/2048/65536",
        f"fleet/f/blob/{PREFIX}/0/{'0' * 5000}",
        f"fleet/f/blob/{PREFIX[:-1]}/0/1",
        f"fleet/f/blob/{PREFIX.upper()}/0/1",
        "x/f/dev/d/status",
        "$SYS/broker/clients/total/x",
        f"fleet/f/to/{'d' * 33}/task",
    ],
)
def test_a_topic_that_the_specification_does_not_have_is_refused(topic: str) -> None:
    with pytest.raises(ProtocolError, match="topic"):
        topics.parse(topic)


@pytest.mark.parametrize("name", ["", "a/b", "a+", "#", "a b", "ä", "x" * 33, "a\n", "a\0"])
def test_names_that_could_break_out_of_their_topic_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="is no name"):
        topics.task("fleet", name)
    with pytest.raises(ProtocolError, match="is no name"):
        topics.delta("fleet", name, "device")
