"""A device as its broker sees it: bytes in, bytes out, as docs/specification/wire.md has it.

Only the training is left out: the delta is there after a wait. The device's weights are the task's,
so nothing is fetched.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cbor2
import mqtt5

from benchmarks.gateway.deltas import ANNOUNCED_SAMPLES, PLAN, WEIGHTS, Deltas
from fleet.protocol import Announce, DeviceState, Reason, ReceiptResult, Status, topics
from fleet.protocol.fields import PREFIX_BYTES, PROTOCOL_VERSION

FLEET, GATEWAY = "benchmark", "north"
KEEP_ALIVE_SECONDS = 60
RECEIVE_MAXIMUM = 2
MAX_PACKET_BYTES = 768
RESEND_SECONDS = (30.0, 60.0, 120.0, 240.0)
# The broker's word that nobody listens to the topic shortens the wait to this share.
NOBODY_LISTENS_SHARE = 1 / 6
NEVER = float("inf")
_NO_CAMPAIGN = bytes(8)
_ONE_AT_A_TIME, _SUBSCRIBE = 1, 2  # packet identifiers


@dataclass(frozen=True)
class Task:
    """What a device needs of a task."""

    lease: int
    campaign: bytes
    round: int
    coding: int
    weighting: int
    chunk_bytes: int
    deadline_seconds: int
    delta_topic: str

    @classmethod
    def read(cls, payload: bytes, delta_topic: str) -> Task:
        """The task in a message's payload."""
        message = cbor2.loads(payload)
        assert message[0] == PROTOCOL_VERSION
        assert message[5:7] == [PLAN, WEIGHTS]
        return cls(*message[1:4], *message[12:16], delta_topic)  # type: ignore[call-arg]


@dataclass
class Told:
    """Receipts that a device has got for a round."""

    result: int
    crc32: int
    times: int = 1


@dataclass(slots=True)
class Device:
    """One device; ``now`` is seconds on any clock that never goes back."""

    number: int
    name: str
    password: str
    deltas: Deltas
    train_seconds: float
    told: dict[int, Told] = field(default_factory=dict)
    """By round."""
    sent: int = 0
    """Whole deltas, those sent again included."""
    connected: bool = False
    task: Task | None = None
    done: tuple[bytes, int] | None = None
    due: float = NEVER
    """When to call ``wake``."""
    _sends: int = 0
    _heard: bytes = b""
    _waiting: deque[tuple[bytes, bool]] = field(default_factory=deque)
    """Publications, and whether they are of a delta."""
    _in_flight: bool = False
    _delta_in_flight: bool = False
    _send_at: float = NEVER
    _spoke: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether it has something to do or to say."""
        return not self.connected or self.task is not None or self._in_flight or bool(self._waiting)

    def connect(self) -> bytes:
        """The first bytes of a new connection."""
        self.connected, self._heard, self._in_flight = False, b"", False
        self._waiting.clear()
        will = mqtt5.Will(
            topics.status(FLEET, self.name),
            payload=_status(DeviceState.OFFLINE),
            qos=mqtt5.QoS.AT_LEAST_ONCE,
            retain=True,
        )
        return mqtt5.ConnectPacket(
            self.name,
            username=self.name,
            password=self.password.encode(),
            clean_start=True,
            will=will,
            keep_alive=KEEP_ALIVE_SECONDS,
            receive_max=RECEIVE_MAXIMUM,
            max_packet_size=MAX_PACKET_BYTES,
        ).write()

    def lost(self) -> None:
        """The connection is gone, and the retained task comes again with the next."""
        self.connected, self.due = False, NEVER

    def receive(self, data: bytes, now: float) -> bytes:
        """Take what came; returns what to send."""
        out: list[bytes] = []
        view = memoryview(self._heard + data if self._heard else data)
        start = 0
        while start < len(view):
            try:
                packet, used = mqtt5.read(view[start:])
            except IndexError:  # not all of it is there
                break
            start += used
            match packet:
                case mqtt5.PublishPacket():
                    if packet.packet_id is not None:
                        out.append(mqtt5.PubAckPacket(packet.packet_id).write())
                    self._message(packet, now)
                case mqtt5.PubAckPacket(reason_code=reason):
                    self._in_flight = False
                    nobody = reason == mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS
                    if nobody and self._delta_in_flight and self.task:
                        self._send_at = now + self._patience() * NOBODY_LISTENS_SHARE
                case mqtt5.ConnAckPacket(reason_code=reason):
                    if reason != mqtt5.ConnAckReasonCode.SUCCESS:
                        self._not_let_in(reason)
                        break
                    out.append(self._hello())
                    if self.task and self._sends:
                        self._send_delta(now)
                case mqtt5.DisconnectPacket():
                    break
        self._heard = bytes(view[start:])
        return self._speak(out, now)

    def _not_let_in(self, reason: mqtt5.ConnAckReasonCode) -> None:
        raise AssertionError(f"{self.name}: {reason!r}")

    def wake(self, now: float) -> bytes:
        """Time has passed."""
        out: list[bytes] = []
        if self.task and now >= self._send_at:
            self._send_delta(now)
        if now - self._spoke > KEEP_ALIVE_SECONDS / 2:
            out.append(mqtt5.PingReqPacket().write())
        return self._speak(out, now)

    def _speak(self, out: list[bytes], now: float) -> bytes:
        if self._waiting and not self._in_flight:
            packet, self._delta_in_flight = self._waiting.popleft()
            out.append(packet)
            self._in_flight = True
        if out:
            self._spoke = now
        self.due = min(self._spoke + KEEP_ALIVE_SECONDS / 2, self._send_at)
        return b"".join(out)

    def _hello(self) -> bytes:
        self.connected = True
        self._announce()
        self._say(DeviceState.IDLE)
        wanted = mqtt5.TopicFilter(
            topics.to_device(FLEET, self.name), max_qos=mqtt5.QoS.AT_LEAST_ONCE
        )
        return mqtt5.SubscribePacket(_SUBSCRIBE, [wanted]).write()

    def _announce(self) -> None:
        self._publish(topics.announce(FLEET, self.name), self._announcement(), retain=True)

    def _announcement(self) -> bytes:
        return _ANNOUNCE

    def _message(self, packet: mqtt5.PublishPacket, now: float) -> None:
        if packet.topic.endswith("/receipt"):
            self._receipt(packet.payload)
        elif not packet.payload:
            self._end()
        else:
            task = Task.read(packet.payload, packet.response_topic or "")
            key = (task.campaign, task.round)
            if key == self.done or (self.task and key == (self.task.campaign, self.task.round)):
                return
            self.task, self._sends = task, 0
            self._say(DeviceState.TRAINING)
            self._send_at = now + self.train_seconds
            if not self.train_seconds:
                self._send_delta(now)

    def _receipt(self, payload: bytes) -> None:
        _, _, campaign, round, result, crc32 = cbor2.loads(payload)
        told = self.told.get(round)
        if told:
            assert (told.result, told.crc32) == (result, crc32), f"{self.name}: two words"
            told.times += 1
        else:
            self.told[round] = Told(result, crc32)
        if self.task and (campaign, round) == (self.task.campaign, self.task.round):
            assert result != ReceiptResult.REFUSED, f"{self.name}: refused"
            self._end()

    def _end(self) -> None:
        if self.task:
            self.done = (self.task.campaign, self.task.round)
            self.task, self._send_at = None, NEVER
            self._say(DeviceState.IDLE)

    def _patience(self) -> float:
        return RESEND_SECONDS[min(self._sends, len(RESEND_SECONDS)) - 1]

    def _send_delta(self, now: float) -> None:
        task = self.task
        assert task is not None
        self.sent += 1
        self._sends += 1
        self._send_at = now + self._patience()
        coded, crc32 = self.deltas.coded(self.number, task.round)
        samples = self.deltas.samples(self.number, task.round)
        size = task.chunk_bytes
        chunks = max(1, -(-len(coded) // size))
        for chunk in range(chunks):
            message = [PROTOCOL_VERSION, task.lease, task.campaign, task.round]
            message += [PLAN[:PREFIX_BYTES], WEIGHTS[:PREFIX_BYTES], task.coding, task.weighting]
            message += [chunk, chunks, len(coded), crc32, samples, samples, 30, 12, 20, 1500, 900]
            message += [0, 0]  # correct-local, kept
            message.append(coded[chunk * size : (chunk + 1) * size])
            self._publish(task.delta_topic, cbor2.dumps(message), expiry=task.deadline_seconds)

    def _say(self, state: DeviceState) -> None:
        payload = _status(state, self.task)
        self._publish(topics.status(FLEET, self.name), payload, retain=True)

    def _publish(
        self, topic: str, payload: bytes, retain: bool = False, expiry: int | None = None
    ) -> None:
        packet = mqtt5.PublishPacket(
            topic,
            payload,
            qos=mqtt5.QoS.AT_LEAST_ONCE,
            retain=retain,
            packet_id=_ONE_AT_A_TIME,
            message_expiry_interval=expiry,
        )
        self._waiting.append((packet.write(), expiry is not None))


def _status(state: DeviceState, task: Task | None = None) -> bytes:
    campaign, round = (task.campaign, task.round) if task else (_NO_CAMPAIGN, 0)
    return Status(state, Reason.NONE, campaign, round, 90).encode()


_ANNOUNCE = Announce(
    board="stm32f746",
    bundle=bytes(range(32)),
    current=WEIGHTS,
    candidate=bytes(32),
    lease=0,
    free_sram_bytes=100_000,
    battery=90,
    link_bits_per_second=115_200,
    train_samples=ANNOUNCED_SAMPLES,
    held_out_samples=30,
    reset_cause=0,
    fault_code=0,
    fault_pc=0,
).encode()
