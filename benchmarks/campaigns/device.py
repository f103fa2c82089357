"""Devices of a deployment as its brokers see them, all of a site in one process.

They are those of `benchmarks.gateway`, but for what campaigns need: they take any task, announce
the weights that a release has made current, and keep a diary. Training is a wait. They fetch no
weights: what they answer doesn't depend on them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import mqtt5

from benchmarks.gateway import device as plain
from benchmarks.gateway.deltas import ANNOUNCED_SAMPLES, Coded, Deltas
from benchmarks.gateway.device import NEVER
from benchmarks.gateway.load import Load
from fleet.protocol import Announce, Delta, DeviceState, Receipt, ReceiptResult, messages
from fleet.protocol.fields import PREFIX_BYTES
from fleet.protocol.numbers import Action

FREE_SRAM_BYTES = 100_000
HELD_OUT_SAMPLES = 30
NOTHING = Coded(b"", 0)
"""What a task that only scores brings beside the scores."""


@dataclass(frozen=True)
class Bundle:
    """What devices have to know of theirs."""

    board: str
    bundle: bytes
    weights: bytes
    plan: bytes
    values: int


@dataclass(frozen=True)
class Task(plain.Task):
    """A task with what the others leave out."""

    action: int
    plan: bytes
    weights: bytes


@dataclass
class Entry:
    """A round in a device's diary; Unix times."""

    campaign: str
    round: int
    action: int
    number: int
    """Of the device: with the round it says which delta it sent, on how many samples."""
    task_at: float
    delta_at: float | None = None
    counted_at: float | None = None
    results: list[int] = field(default_factory=list)
    """Of its receipts."""


@dataclass(slots=True)
class Device(plain.Device):
    """A device of a bundle, with a share of the made-up training times."""

    bundle: Bundle = field(kw_only=True)
    seconds: tuple[float, float] = field(kw_only=True)
    current: bytes = field(kw_only=True)
    lease: int = 0
    diary: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def _not_let_in(self, reason: mqtt5.ConnAckReasonCode) -> None:
        """The broker doesn't know it yet; it tries again."""

    def _announcement(self) -> bytes:
        return Announce(
            board=self.bundle.board,
            bundle=self.bundle.bundle,
            current=self.current,
            candidate=messages.NO_DIGEST,
            lease=self.lease,
            free_sram_bytes=FREE_SRAM_BYTES,
            battery=90,
            link_bits_per_second=115_200,
            train_samples=ANNOUNCED_SAMPLES,
            held_out_samples=HELD_OUT_SAMPLES,
            reset_cause=0,
            fault_code=0,
            fault_pc=0,
        ).encode()

    def _message(self, packet: mqtt5.PublishPacket, now: float) -> None:
        if packet.topic.endswith("/receipt"):
            self._receipt(packet.payload)
        elif not packet.payload:
            self._end()
        else:
            self._begin(packet.payload, packet.response_topic or "", now)

    def _begin(self, payload: bytes, delta_topic: str, now: float) -> None:
        told = messages.Task.decode(payload)
        key = (told.campaign, told.round)
        if key == self.done or (self.task and key == (self.task.campaign, self.task.round)):
            return
        if self.task is not None and self.task.campaign != told.campaign:
            self.problems.append(f"{self.name}: a task of another campaign while it has one")
        if told.plan != self.bundle.plan:
            self.problems.append(f"{self.name}: a plan that it doesn't have")
        if told.lease < self.lease:
            self.problems.append(f"{self.name}: lease {told.lease} after {self.lease}")
        self.lease = told.lease
        self.task = Task(
            told.lease,
            told.campaign,
            told.round,
            told.coding,
            told.weighting,
            told.uplink_chunk_bytes,
            told.deadline_seconds,
            delta_topic,
            told.action,
            told.plan,
            told.weights,
        )
        campaign = told.campaign.hex()
        self.diary.append(Entry(campaign, told.round, told.action, self.number, time.time()))
        self._sends = 0
        self._say(DeviceState.TRAINING if told.action == Action.TRAIN else DeviceState.SCORING)
        least, most = self.seconds
        seed = hashlib.sha256(f"{self.name}/{campaign}/{told.round}".encode()).digest()
        self._send_at = now + least + (most - least) * int.from_bytes(seed[:4], "big") / 2**32

    def _receipt(self, payload: bytes) -> None:
        receipt = Receipt.decode(payload)
        campaign = receipt.campaign.hex()
        for entry in reversed(self.diary):
            if (entry.campaign, entry.round) == (campaign, receipt.round):
                entry.results.append(receipt.result)
                if receipt.result == ReceiptResult.COUNTED and entry.counted_at is None:
                    entry.counted_at = time.time()
                break
        else:
            self.problems.append(f"{self.name}: a receipt of a round that it has no part in")
        if self.task and (receipt.campaign, receipt.round) == (self.task.campaign, self.task.round):
            task = self.task
            self._end()
            if isinstance(task, Task) and task.action == Action.RELEASE:
                self.current = task.weights
                self._announce()

    def _send_delta(self, now: float) -> None:
        task = self.task
        assert isinstance(task, Task)
        self.sent += 1
        self._sends += 1
        self._send_at = now + self._patience()
        if self.diary[-1].delta_at is None:
            self.diary[-1].delta_at = time.time()
        trains = task.action == Action.TRAIN
        (coded, crc32), samples = NOTHING, 0
        if trains:
            coded, crc32 = self.deltas.coded(self.number, task.round)
            samples = self.deltas.samples(self.number, task.round)
        size = task.chunk_bytes
        chunks = max(1, -(-len(coded) // size))
        for chunk in range(chunks):
            message = Delta(
                lease=task.lease,
                campaign=task.campaign,
                round=task.round,
                plan=task.plan[:PREFIX_BYTES],
                weights=task.weights[:PREFIX_BYTES],
                coding=task.coding,
                weighting=task.weighting,
                chunk=chunk,
                chunks=chunks,
                coded_bytes=len(coded),
                coded_crc32=crc32,
                train_samples=samples,
                train_steps=samples,
                held_out_samples=HELD_OUT_SAMPLES,
                correct_before=12,
                correct_after=20 if trains else 12,
                loss_before_thousandths=1500,
                loss_after_thousandths=900 if trains else 1500,
                correct_local=0,
                kept=0,
                coded=coded[chunk * size : (chunk + 1) * size],
            )
            self._publish(task.delta_topic, message.encode(), expiry=task.deadline_seconds)


class SiteLoad(Load):
    """The loop of `benchmarks.gateway`; it is also asked for the ``diary``."""

    def __init__(self, devices: list[Device], address: tuple[str, int], control: Connection):
        """See `Load`."""
        super().__init__(devices, address, control)
        self._devices = devices
        self._answers = control

    def _reply_to(self, wanted: object) -> bool:
        if wanted != "diary":
            return super()._reply_to(wanted)
        entries = {one.name: one.diary for one in self._devices}
        self._answers.send((entries, [what for one in self._devices for what in one.problems]))
        return True


def run(
    passwords: Mapping[str, str],
    bundle: Bundle,
    seconds: tuple[float, float],
    address: tuple[str, int],
    control: Connection,
) -> None:
    """The main function of a site's devices; each task takes one ``seconds``, drawn by name."""
    deltas = Deltas(bundle.values)
    devices = [
        Device(
            number,
            name,
            password,
            deltas,
            NEVER,
            bundle=bundle,
            seconds=seconds,
            current=bundle.weights,
        )
        for number, (name, password) in enumerate(passwords.items())
    ]
    SiteLoad(devices, address, control).run()
