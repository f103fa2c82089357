"""How devices are connected: rate, latency, what is lost, what comes twice, what overtakes.

Devices speak MQTT over TCP, so no message is damaged, and none overtakes another on a connection.
What a bad network does to a device is this:

* a lost segment is sent again after a timeout, and all that is behind it waits (RFC 6298);
* a connection breaks. What was under way is gone; at QoS 1 whoever sent it sends it again, which
  is how a message comes twice;
* a broker hands a message of one topic over before an earlier one of another topic, and drops
  messages at QoS 0 that don't fit its queues. On one topic MQTT 5 keeps the order (section 4.6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, field_validator

from simulator.world.draws import arrivals, generator
from simulator.world.fields import (
    HOUR_SECONDS,
    Name,
    PositiveRange,
    Seconds,
    Section,
    Share,
    add_up_to_one,
    chosen_by_share,
    drawn,
)

Direction = Literal["up", "down"]
"""Up: from the device."""
LONGEST_TIMEOUT_SECONDS = 60.0
"""Timeouts double until there (RFC 6298, 2.5 and 5.5)."""

Rate = Annotated[PositiveRange, Field(validate_default=True)]
Count = Annotated[float, Field(ge=0.0)]


class LinkClass(Section):
    """A way of being connected, which a share of the devices has."""

    share: Share = 1.0
    up_bytes_per_second: Rate = (11_520.0, 11_520.0)
    """Each device has its own rate; by default that of a serial line of 115,200 baud."""
    down_bytes_per_second: Rate = (11_520.0, 11_520.0)
    latency_seconds: PositiveRange = (0.0, 0.0)
    """One way; each device has its own."""
    jitter_seconds: Seconds = 0.0
    """Mean of what comes on top for each message, exponential."""
    loss: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of segments that don't arrive, each by itself."""
    segment_bytes: Annotated[int, Field(ge=64, le=65_535)] = 1460
    """What of a message is in one segment at most."""
    segment_overhead_bytes: Annotated[int, Field(ge=0, le=1000)] = 40
    """Headers of IP and TCP, and of what is below."""
    retransmission_seconds: Annotated[float, Field(gt=0.0)] = 1.0
    """Timeout of the first retransmission of a segment; RFC 6298 has 1 s at least."""
    disconnects_per_hour: Count = 0.0
    """How often a connection breaks on average, at random instants."""
    reconnect_seconds: PositiveRange = (1.0, 10.0)
    """How long there is none then."""
    redelivered: Share = 0.0
    """Of messages at QoS 1 that arrive: sent once more, as if nobody had acknowledged them."""
    redelivered_after_seconds: PositiveRange = (1.0, 30.0)
    held_back: Share = 0.0
    """Of messages: those of other topics, though sent later, overtake them at the broker."""
    held_back_seconds: PositiveRange = (0.0, 5.0)
    dropped: Share = 0.0
    """Of messages at QoS 0: lost at the broker."""
    cost_per_byte: Count = 0.0
    """Both ways, in whatever money; of all that is sent, segments that are lost included."""
    up_microjoules_per_byte: Count = 0.0
    """What a byte costs the device's battery."""
    down_microjoules_per_byte: Count = 0.0

    @field_validator("up_bytes_per_second", "down_bytes_per_second")
    @classmethod
    def _is_a_rate(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] <= 0.0:
            raise ValueError("begins at 0; a link that is never there is a matter of availability")
        return ends


def _have_all_devices(classes: Mapping[str, LinkClass]) -> Mapping[str, LinkClass]:
    add_up_to_one({name: one.share for name, one in classes.items()})
    return classes


LinkClasses = Annotated[
    Mapping[Name, LinkClass], Field(min_length=1), AfterValidator(_have_all_devices)
]


@dataclass(frozen=True)
class Link:
    """A device's link."""

    name: str
    """Of its class."""
    kind: LinkClass
    up_bytes_per_second: float
    down_bytes_per_second: float
    latency_seconds: float

    def rate(self, direction: Direction) -> float:
        """Bytes per second."""
        return self.up_bytes_per_second if direction == "up" else self.down_bytes_per_second

    def cost(self, sent_bytes: int) -> float:
        """What so many bytes cost, in the money of `cost_per_byte`."""
        return sent_bytes * self.kind.cost_per_byte


def link_of(classes: Mapping[str, LinkClass], seed: int, device: int) -> Link:
    """The device's link, whatever the number of devices."""
    name = chosen_by_share({name: one.share for name, one in classes.items()}, seed, "link", device)
    kind = classes[name]
    random = generator(seed, "link of", device)
    return Link(
        name=name,
        kind=kind,
        up_bytes_per_second=drawn(kind.up_bytes_per_second, random),
        down_bytes_per_second=drawn(kind.down_bytes_per_second, random),
        latency_seconds=drawn(kind.latency_seconds, random),
    )


def outages(
    link: Link, seed: int, device: int, since: float = 0.0
) -> Iterator[tuple[float, float]]:
    """[broken, back) of the device's connection that end after ``since``, in order, disjoint.

    Endless, unless connections never break. Those that overlap are one.
    """
    longest = link.kind.reconnect_seconds[1]
    one: tuple[float, float] | None = None
    for at, random in arrivals(
        seed,
        "disconnect",
        device,
        per_second=link.kind.disconnects_per_hour / HOUR_SECONDS,
        since=max(since - longest, 0.0),
    ):
        back = at + drawn(link.kind.reconnect_seconds, random)
        if one is not None and at <= one[1]:
            one = (one[0], max(one[1], back))
            continue
        if one is not None and one[1] > since:
            yield one
        one = (at, back)


@dataclass(frozen=True)
class Delivery:
    """What becomes of a message."""

    arrives_at: float | None
    """When its receiver has it; None: never, as far as this connection goes."""
    again_at: float | None
    """When its sender sends it once more, at QoS 1."""
    bytes: int
    """All that was sent for it, headers and lost segments included."""
    retransmissions: int


class Stream:
    """One direction of one connection of a device: messages go in, in order, and come out.

    A segment counts as lost each time by itself and costs its timeout each time. Senders with
    windows of many segments notice earlier; those of microcontrollers are of a few.
    """

    def __init__(
        self, link: Link, seed: int, device: int, direction: Direction, connection: int = 0
    ) -> None:
        """``connection`` numbers the device's connections, each of which has draws of its own."""
        self._link = link
        self._rate = link.rate(direction)
        self._seed, self._purpose = seed, f"stream/{direction}"
        self._numbers = (device, connection)
        self._free = self._arrived = -math.inf
        self._of_topic: dict[str, float] = {}

    def send(self, at: float, size: int, *, topic: str, qos: int, again: bool = False) -> Delivery:
        """A message of ``size`` bytes with its MQTT header, sent not before the one before it.

        ``again``: it has been sent before; it isn't sent a third time.
        """
        kind = self._link.kind
        segments = max(math.ceil(size / kind.segment_bytes), 1)
        lost, stalls = 0, 0.0
        if kind.loss:
            losses = self._random.geometric(1.0 - kind.loss, segments) - 1
            lost = int(losses.sum())
            stalls = sum(_timeouts(kind.retransmission_seconds, int(n)) for n in losses if n)
        # Which of the segments is the shorter last one is left out of account here.
        whole = size + segments * kind.segment_overhead_bytes
        on_air = whole + round(lost * whole / segments)
        self._free = max(at, self._free) + on_air / self._rate + stalls
        arrived = self._free + self._link.latency_seconds
        if kind.jitter_seconds:
            arrived += self._random.exponential(kind.jitter_seconds)
        handed = self._arrived = max(self._arrived, arrived)
        if kind.held_back and self._random.random() < kind.held_back:
            handed += drawn(kind.held_back_seconds, self._random)
        handed = max(handed, self._of_topic.get(topic, handed))
        if qos == 0 and kind.dropped and self._random.random() < kind.dropped:
            return Delivery(None, None, on_air, lost)
        self._of_topic[topic] = handed
        again_at = None
        if qos > 0 and not again and kind.redelivered and self._random.random() < kind.redelivered:
            again_at = handed + drawn(kind.redelivered_after_seconds, self._random)
        return Delivery(handed, again_at, on_air, lost)

    @cached_property
    def _random(self) -> np.random.Generator:
        """Made when something is left to chance: not on most links."""
        return generator(self._seed, self._purpose, *self._numbers)


def _timeouts(first: float, losses: int) -> float:
    return sum(min(first * 2.0**number, LONGEST_TIMEOUT_SECONDS) for number in range(losses))
