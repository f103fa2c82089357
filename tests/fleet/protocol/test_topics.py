from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import ProtocolError
from fleet.protocol import topics
from fleet.protocol.topics import Topic

names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=32)
SHA = "ab" * 32


@given(names, names, names, st.integers(0, 70_000))
def test_every_topic_that_is_built_is_taken_apart_again(
    fleet: str, gateway: str, device: str, chunk: int
) -> None:
    assert topics.parse(topics.announce(fleet, device)) == Topic("announce", fleet, device)
    assert topics.parse(topics.task(fleet, device)) == Topic("task", fleet, device)
    assert topics.parse(topics.status(fleet, device)) == Topic("status", fleet, device)
    delta = topics.parse(topics.delta(fleet, gateway, device))
    assert delta == Topic("delta", fleet, device, gateway)
    blob = topics.parse(topics.blob(fleet, SHA, chunk))
    assert blob == Topic("blob", fleet, sha256=SHA, chunk=chunk)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fleet",
        "fleet/f/dev/d",
        "fleet/f/dev/d/other",
        "fleet/f/dev/d/task/more",
        "fleet/f/dev/+/task",
        "fleet//dev/d/task",
        "fleet/f/dev//task",
        "fleet/f/gw/g/d/task",
        "fleet/f/gw/g/delta",
        f"fleet/f/blob/{SHA}/01",
        f"fleet/f/blob/{SHA}/-1",
        f"fleet/f/blob/{SHA}/²",
        f"fleet/f/blob/{SHA[:-1]}/1",
        f"fleet/f/blob/{SHA.upper()}/1",
        "x/f/dev/d/task",
        "$SYS/broker/clients/total/x",
        f"fleet/f/dev/{'d' * 33}/task",
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
