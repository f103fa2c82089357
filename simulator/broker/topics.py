"""Topics and filters (MQTT 5, 4.7): what is well formed, and trees that match them.

Matching costs as much as the topic has levels, whatever the number of subscriptions. The trees go
over their branches in the order in which these were made, so that equal events have equal results;
subscriptions are found in Mosquitto's order: the literal level, then ``+``, then ``#``.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

from simulator.broker.message import Message

MAX_SLASHES = 200  # Mosquitto's, too
MAX_BYTES = 65535

# As Mosquitto: the standard lets a broker refuse control characters and non-characters.
_UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")

_Subscriber = TypeVar("_Subscriber")
_Subscription = TypeVar("_Subscription")


def is_topic(topic: str) -> bool:
    """Whether one can publish to it."""
    return "+" not in topic and "#" not in topic and _is_text(topic)


def is_filter(pattern: str) -> bool:
    """Whether one can subscribe to it: a wildcard is a whole level, ``#`` the last."""
    if not _is_text(pattern):
        return False
    if "+" not in pattern and "#" not in pattern:
        return True
    levels = pattern.split("/")
    return "#" not in levels[:-1] and all(
        len(level) == 1 or ("+" not in level and "#" not in level) for level in levels
    )


def _is_text(text: str) -> bool:
    if not text or text.count("/") > MAX_SLASHES:
        return False
    if text.isascii() and text.isprintable():
        return len(text) <= MAX_BYTES
    return not _UNWANTED.search(text) and len(text.encode()) <= MAX_BYTES


class _Branch(Generic[_Subscriber, _Subscription]):
    __slots__ = ("children", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[str, _Branch[_Subscriber, _Subscription]] = {}
        self.subscriptions: dict[_Subscriber, _Subscription] | None = None


class SubscriptionTree(Generic[_Subscriber, _Subscription]):
    """Who has subscribed to what."""

    def __init__(self) -> None:
        """Nobody."""
        self._root: _Branch[_Subscriber, _Subscription] = _Branch()
        # Topics with a $ in front are met by no wildcard of the first level.
        self._reserved: _Branch[_Subscriber, _Subscription] = _Branch()

    def _root_of(self, topic: str) -> _Branch[_Subscriber, _Subscription]:
        return self._reserved if topic[0] == "$" else self._root

    def add(self, pattern: str, subscriber: _Subscriber, subscription: _Subscription) -> None:
        """Subscribe, in place of what this subscriber has had there."""
        branch = self._root_of(pattern)
        for level in pattern.split("/"):
            child = branch.children.get(level)
            if child is None:
                child = branch.children[level] = _Branch()
            branch = child
        if branch.subscriptions is None:
            branch.subscriptions = {}
        branch.subscriptions[subscriber] = subscription

    def remove(self, pattern: str, subscriber: _Subscriber) -> None:
        """End a subscription that there is."""
        path = [self._root_of(pattern)]
        levels = pattern.split("/")
        for level in levels:
            path.append(path[-1].children[level])
        leaf = path[-1]
        assert leaf.subscriptions is not None
        del leaf.subscriptions[subscriber]
        if leaf.subscriptions:
            return
        leaf.subscriptions = None
        for level, branch in zip(reversed(levels), reversed(path[:-1]), strict=True):
            child = branch.children[level]
            if child.children or child.subscriptions:
                return
            del branch.children[level]

    def match(self, topic: str) -> list[tuple[_Subscriber, _Subscription]]:
        """The subscriptions that a topic meets; one for each filter, also of one subscriber."""
        found: list[tuple[_Subscriber, _Subscription]] = []
        _match(self._root_of(topic), topic.split("/"), 0, found)
        return found


def _match(
    branch: _Branch[_Subscriber, _Subscription],
    levels: list[str],
    depth: int,
    found: list[tuple[_Subscriber, _Subscription]],
) -> None:
    children = branch.children
    if depth < len(levels):
        last = depth == len(levels) - 1
        for level in (levels[depth], "+"):
            child = children.get(level)
            if child is not None:
                if child.children:
                    _match(child, levels, depth + 1, found)
                if last and child.subscriptions:
                    found.extend(child.subscriptions.items())
    child = children.get("#")
    if child is not None and child.subscriptions:
        found.extend(child.subscriptions.items())


class _Retained:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Retained] = {}
        self.message: Message | None = None


class RetainedTree:
    """The last retained message of each topic."""

    def __init__(self) -> None:
        """None."""
        self._root = _Retained()

    def put(self, message: Message) -> None:
        """Keep it, in place of the one before."""
        branch = self._root
        for level in message.topic.split("/"):
            child = branch.children.get(level)
            if child is None:
                child = branch.children[level] = _Retained()
            branch = child
        branch.message = message

    def get(self, topic: str) -> Message | None:
        """The message of a topic."""
        branch: _Retained | None = self._root
        for level in topic.split("/"):
            assert branch is not None
            branch = branch.children.get(level)
            if branch is None:
                return None
        assert branch is not None
        return branch.message

    def remove(self, topic: str) -> None:
        """Keep none; nothing where there is none."""
        levels = topic.split("/")
        path = [self._root]
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        path[-1].message = None
        for level, branch in zip(reversed(levels), reversed(path[:-1]), strict=True):
            child = branch.children[level]
            if child.children or child.message is not None:
                return
            del branch.children[level]

    def match(self, pattern: str) -> list[Message]:
        """Those whose topics a filter meets."""
        found: list[Message] = []
        _retained_match(self._root, pattern.split("/"), 0, found)
        return found


def _retained_match(branch: _Retained, levels: list[str], depth: int, found: list[Message]) -> None:
    if depth == len(levels):
        if branch.message is not None:
            found.append(branch.message)
        return
    level = levels[depth]
    if level == "#":
        for name, child in branch.children.items():
            if depth > 0 or not name.startswith("$"):
                _all_of(child, found)
        if branch.message is not None:
            found.append(branch.message)
    elif level == "+":
        for name, child in branch.children.items():
            if depth > 0 or not name.startswith("$"):
                _retained_match(child, levels, depth + 1, found)
    elif level in branch.children:
        _retained_match(branch.children[level], levels, depth + 1, found)


def _all_of(branch: _Retained, found: list[Message]) -> None:
    if branch.message is not None:
        found.append(branch.message)
    for child in branch.children.values():
        _all_of(child, found)
