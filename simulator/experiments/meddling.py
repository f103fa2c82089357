"""What becomes of messages between a site's broker and its gateways: forged, doubled, overtaken.

A world says so of devices (`faults.malicious`) and of their links (`redelivered`, `held_back`,
`dropped`). Lines carry streams, which know of no messages; so it happens here, where each message
has arrived as a whole. Nobody else notices: a device whose delta is forged has trained as ever.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fleet.errors import ProtocolError
from fleet.gateway.link import Message
from fleet.protocol import Delta, delta_coding, topics
from simulator.experiments.window_clock import WindowClock
from simulator.virtual.population import Population
from simulator.world.draws import generator
from simulator.world.fields import drawn

Deliver = Callable[[Message], None]


class Meddler:
    """For the messages of all devices of a fleet."""

    def __init__(self, population: Population, clock: WindowClock) -> None:
        """Chance is the world's, device by device."""
        self._population = population
        self._clock = clock
        world = population.world
        self._numbers = {world.device(number).name: number for number in population.numbers}
        classes = world.config.links.values()
        self._disturbs = any(one.redelivered or one.held_back or one.dropped for one in classes)
        self._forges = world.config.faults.malicious.share > 0.0
        self._random: dict[int, np.random.Generator] = {}
        self._chunks: dict[tuple[int, int, int], dict[int, Delta]] = {}
        """By device, round and CRC-32: of deltas that aren't complete."""
        self._not_before: dict[str, float] = {}
        """By topic: when the last message that was held back comes."""

    def drops(self, topic: str, qos: int) -> bool:
        """Whether a gateway's message is lost on its way to a device."""
        if qos or not self._disturbs:
            return False
        number = self._device_of(topic)
        if number is None:
            return False
        share = self._population.world.link(number).kind.dropped
        return share > 0.0 and self._random_of(number).random() < share

    def to_gateway(self, message: Message, deliver: Deliver) -> None:
        """Hand a message over: as it is or not, once or twice, now or later."""
        if not (self._disturbs or self._forges):
            deliver(message)
            return
        number = self._device_of(message.topic)
        if number is None or message.retained:
            deliver(message)
            return
        for one in self._forged(number, message):
            if self._disturbs:
                self._disturbed(number, one, deliver)
            else:
                deliver(one)

    def _device_of(self, topic: str) -> int | None:
        try:
            return self._numbers.get(topics.parse(topic).device)
        except ProtocolError:
            return None

    def _random_of(self, number: int) -> np.random.Generator:
        if number not in self._random:
            self._random[number] = generator(self._population.seed, "meddling", number)
        return self._random[number]

    # ---- links -----------------------------------------------------------------------

    def _disturbed(self, number: int, message: Message, deliver: Deliver) -> None:
        kind, random = self._population.world.link(number).kind, self._random_of(number)
        now = self._clock.monotonic()
        at = now
        if kind.held_back and random.random() < kind.held_back:
            at += drawn(kind.held_back_seconds, random)
        # On one topic the order holds.
        at = max(at, self._not_before.get(message.topic, 0.0))
        if at > now:
            self._not_before[message.topic] = at
            self._clock.call_at(at, lambda: deliver(message))
        else:
            deliver(message)
        if kind.redelivered and random.random() < kind.redelivered:
            again = at + drawn(kind.redelivered_after_seconds, random)
            self._clock.call_at(again, lambda: deliver(message))

    # ---- devices ---------------------------------------------------------------------

    def _forged(self, number: int, message: Message) -> list[Message]:
        """What a malicious device sends instead, once its whole delta is there."""
        world = self._population.world
        if not self._forges or topics.parse(message.topic).kind != "delta":
            return [message]
        if not world.is_malicious(number):
            return [message]
        try:
            delta = Delta.decode(message.payload)
        except ProtocolError:
            return [message]
        name = (number, delta.round, delta.coded_crc32)
        whole = self._chunks.setdefault(name, {})
        whole[delta.chunk] = delta
        if len(whole) < delta.chunks or not delta.coded_bytes:
            return [] if delta.coded_bytes else [message]
        del self._chunks[name]
        coded = b"".join(whole[chunk].coded for chunk in sorted(whole))
        values = delta_coding.decode(coded, self._values_of(number, delta.plan))
        forged = delta_coding.encode(world.poisoned(number, values, delta.round))
        return [message._replace(payload=one.encode()) for one in _cut(delta, forged)]

    def _values_of(self, number: int, plan: bytes) -> int:
        board = self._population.world.device(number).board
        for one in self._population.bundle(board).manifest.plans:
            if bytes.fromhex(one.id).startswith(plan):
                return one.delta_values
        raise AssertionError("a device trains a plan that its bundle hasn't")


def _cut(like: Delta, coded: bytes) -> list[Delta]:
    """The chunks of a coded delta, with the head of another."""
    size = max(len(like.coded), 1024)
    parts = [coded[at : at + size] for at in range(0, len(coded), size)] or [b""]
    return [
        replace(
            like,
            chunk=chunk,
            chunks=len(parts),
            coded_bytes=len(coded),
            coded_crc32=zlib.crc32(coded),
            coded=part,
        )
        for chunk, part in enumerate(parts)
    ]
