"""How long messages to gateways wait, and how often gateways are asked: the one place for it."""

from __future__ import annotations

from dataclasses import dataclass

HELLO_SECONDS = 15.0
"""A gateway of which nothing was heard for so long is asked for news. Each time is a process that
costs it 1.5 s of CPU."""


@dataclass(frozen=True)
class FlowerPace:
    """Waiting times in seconds.

    `pull`: between looks for replies. `nodes`: between looks for new SuperNodes.
    `sync_wait`: how long one sync stays at the gateway; each message costs a process at the site,
    so long is cheap, and short shows progress. `expecting_wait`: the same while a start may come.
    `expecting`: so long a campaign's next round is expected. `hold`: so long after a round's end a
    start is waited for that has to come. `linger`: from the first end of a round at a gateway, for
    those of others. `answer`: beyond the wait, until a message counts as lost.
    """

    pull: float = 0.4
    nodes: float = 1.5
    sync_wait: float = 20.0
    expecting_wait: float = 2.0
    expecting: float = 30.0
    hold: float = 5.0
    linger: float = 1.0
    answer: float = 45.0


@dataclass(frozen=True)
class Pace:
    """Waiting times of the driver, in seconds: between looks at what an operator wants, before a
    request is sent again, between questions for news of devices."""

    stop_check: float = 2.0
    retry: float = 2.0
    hello: float = 3.0
    news: float = 15.0
    """At most, until gateways have told of what has changed."""
