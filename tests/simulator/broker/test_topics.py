"""Trees of topics against a matcher that goes by the standard's words (MQTT 5, 4.7)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.broker.message import Message
from simulator.broker.topics import RetainedTree, SubscriptionTree, is_filter, is_topic

# Few names, so that they meet; a level may be empty, and one begins as those of brokers do.
LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(
        st.lists(st.one_of(LEVELS, st.just("+")), min_size=1, max_size=4),
        st.sampled_from([[], ["#"]]),
    )
    .map(lambda parts: "/".join(parts[0] + parts[1]))
    .filter(bool)
)


def matches(pattern: str, topic: str) -> bool:
    if topic.startswith("$") and pattern[0] in "+#":
        return False
    wanted, there = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        there = there[: len(wanted)]
    return len(wanted) == len(there) and all(
        one in ("+", other) for one, other in zip(wanted, there, strict=True)
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), FILTERS)), st.lists(TOPICS))
def test_a_topic_finds_the_subscriptions_whose_filters_it_meets(
    changes: list[tuple[bool, int, str]], topics: list[str]
) -> None:
    tree: SubscriptionTree[int, str] = SubscriptionTree()
    there: set[tuple[int, str]] = set()
    for adds, who, pattern in changes:
        assert is_filter(pattern)
        if adds:
            tree.add(pattern, who, pattern)
            there.add((who, pattern))
        elif (who, pattern) in there:
            tree.remove(pattern, who)
            there.remove((who, pattern))
    for topic in topics:
        found = tree.match(topic)
        assert sorted(found) == sorted(one for one in there if matches(one[1], topic))


@given(st.lists(st.tuples(st.booleans(), TOPICS)), st.lists(FILTERS))
def test_a_filter_finds_the_retained_messages_whose_topics_meet_it(
    changes: list[tuple[bool, str]], patterns: list[str]
) -> None:
    tree = RetainedTree()
    there: dict[str, Message] = {}
    for keeps, topic in changes:
        assert is_topic(topic)
        if keeps:
            there[topic] = Message(topic, b"x", 0, True, "p")
            tree.put(there[topic])
        else:
            there.pop(topic, None)
            tree.remove(topic)
        assert tree.get(topic) is there.get(topic)
    for pattern in patterns:
        found = [message.topic for message in tree.match(pattern)]
        assert sorted(found) == sorted(topic for topic in there if matches(pattern, topic))
