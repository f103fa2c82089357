"""Streams: in order, no faster than the link, with what is lost paid in time and bytes."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.world.links import Delivery, Link, Stream
from tests.conftest import examples
from tests.simulator.world.worlds import world

BAD = {
    "latency_seconds": 0.1,
    "jitter_seconds": 0.5,
    "loss": 0.2,
    "redelivered": 0.3,
    "held_back": 0.3,
    "dropped": 0.3,
}


def link(**fields: Any) -> Link:
    return world(1, links={"serial": fields}).link(0)


@examples(60)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(
            st.floats(0, 20), st.integers(0, 20_000), st.integers(0, 1), st.sampled_from("ab")
        ),
        min_size=2,
        max_size=30,
    ),
)
def test_on_one_topic_nothing_overtakes_and_nothing_is_faster_than_the_link(
    seed: int, messages: list[tuple[float, int, int, str]]
) -> None:
    slow = link(up_bytes_per_second=1000, **BAD)
    stream = Stream(slow, seed, 3, "up")
    at, sent, last = 0.0, 0, {"a": 0.0, "b": 0.0}
    first = messages[0][0]
    for wait, size, qos, topic in messages:
        at += wait
        delivery = stream.send(at, size, topic=topic, qos=qos)
        sent += delivery.bytes
        assert delivery.bytes >= size + 40
        assert (delivery.again_at is None) or qos == 1
        if delivery.arrives_at is None:
            assert qos == 0
            continue
        assert delivery.arrives_at >= at + delivery.bytes / 1000 + 0.1
        assert delivery.arrives_at >= first + sent / 1000
        assert delivery.arrives_at >= last[topic]
        last[topic] = delivery.arrives_at


def test_a_good_link_takes_the_time_that_rate_and_latency_say() -> None:
    good = link(up_bytes_per_second=100, latency_seconds=2, segment_overhead_bytes=0)
    stream = Stream(good, 0, 0, "up")
    sent = [stream.send(at, 500, topic="t", qos=1) for at in (10.0, 10.0, 60.0)]
    assert sent == [
        Delivery(17.0, None, 500, 0),
        Delivery(22.0, None, 500, 0),  # waits for the one before it
        Delivery(67.0, None, 500, 0),
    ]
    down = Stream(good, 0, 0, "down").send(0.0, 11_520, topic="t", qos=0)
    assert down.arrives_at == pytest.approx(3.0)


@pytest.mark.parametrize("loss", [0.05, 0.5])
def test_lost_segments_cost_on_average_what_rfc_6298_lets_one_expect(loss: float) -> None:
    lossy = link(loss=loss, up_bytes_per_second=1e9)
    deliveries = [
        Stream(lossy, 5, 0, "up", connection=number).send(0.0, 20 * 1460, topic="t", qos=1)
        for number in range(4000)
    ]
    again = np.mean([one.retransmissions for one in deliveries])
    assert again == pytest.approx(20 * loss / (1 - loss), rel=0.03)
    sent = np.mean([one.bytes for one in deliveries])
    assert sent == pytest.approx(20 * 1500 / (1 - loss), rel=0.01)
    # A segment's k-th timeout, which it meets with probability loss^k, is 2^(k-1) s, at most 60.
    expected = 20 * sum(loss**k * min(2.0 ** (k - 1), 60.0) for k in range(1, 60))
    taken = np.mean([one.arrives_at for one in deliveries if one.arrives_at is not None])
    assert taken == pytest.approx(expected, rel=0.05)


def test_messages_come_again_overtake_and_get_lost_as_often_as_was_asked_for() -> None:
    stream = Stream(link(redelivered=0.2, held_back=0.1, dropped=0.3), 1, 0, "down")
    at_qos_1 = [stream.send(9.0 * n, 10, topic=f"t{n}", qos=1) for n in range(3000)]
    at_qos_0 = [stream.send(1e6 + 9.0 * n, 10, topic=f"t{n}", qos=0) for n in range(3000)]
    assert all(one.arrives_at is not None for one in at_qos_1)
    assert np.mean([one.again_at is not None for one in at_qos_1]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([one.arrives_at is None for one in at_qos_0]) == pytest.approx(0.3, abs=0.03)
    late = [(one.arrives_at or 0.0) - 9.0 * n > 0.1 for n, one in enumerate(at_qos_1)]
    assert np.mean(late) == pytest.approx(0.1, abs=0.03)
    copy = [stream.send(2e6 + n, 10, topic="t", qos=1, again=True) for n in range(300)]
    assert all(one.again_at is None for one in copy)


def test_connections_and_directions_have_chance_of_their_own() -> None:
    bad = link(**BAD)

    def deliveries(**fields: Any) -> list[Delivery]:
        stream = Stream(bad, 1, **{"device": 0, "direction": "up", "connection": 0, **fields})
        return [stream.send(float(at), 9000, topic="t", qos=1) for at in range(5)]

    assert deliveries() == deliveries()
    others = [{"device": 1}, {"direction": "down"}, {"connection": 1}]
    assert all(deliveries(**other) != deliveries() for other in others)


def test_connections_break_as_often_and_as_long_as_was_asked_for() -> None:
    fields = {"disconnects_per_hour": 2.0, "reconnect_seconds": [30, 90]}
    made = world(1, links={"serial": fields})
    found = list(islice(made.outages(0)(0.0), 4000))
    assert all(on < off for on, off in found)
    assert all(off < on for (_, off), (on, _) in pairwise(found))
    hours = found[-1][0] / 3600
    gone = sum(off - on for on, off in found) / 3600
    # Broken is the M/G/∞ queue's busy time: 1 - exp(-rate · mean duration).
    assert gone / hours == pytest.approx(1 - math.exp(-2 / 60), rel=0.05)
    since = found[100][0] + 1.0
    assert list(islice(made.outages(0)(since), 50)) == found[100:150]


def test_a_link_that_never_breaks_has_no_outages() -> None:
    assert list(world(1).outages(0)(0.0)) == []


def test_devices_have_links_of_the_classes_by_share() -> None:
    classes = {
        "wifi": {"share": 0.7, "up_bytes_per_second": 1e6, "cost_per_byte": 0.0},
        "narrow": {"share": 0.3, "up_bytes_per_second": [1000, 3000], "cost_per_byte": 1e-6},
    }
    whole = {"serial": {"share": 0.0}, **classes}
    made = world(200, links=whole)
    found = [made.link(number) for number in made.devices]
    narrow = [one for one in found if one.name == "narrow"]
    assert (len(narrow), len(found)) == (60, 200)
    rates = [one.rate("up") for one in narrow]
    assert 1000 <= min(rates) < 1200
    assert 2800 < max(rates) <= 3000
    assert narrow[0].cost(5_000_000) == pytest.approx(5.0)
