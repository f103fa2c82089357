"""What a gateway does about rounds: a state machine without I/O.

Every method is an event; it returns the actions that follow from it (see
:mod:`fleet.gateway.actions`). Time comes in with the events. The daemon drives it with MQTT
and a clock, tests and the simulator with whatever they like.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fleet.errors import CodingError, GatewayError, ProtocolError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action
from fleet.gateway.rounds import (
    BlobSize,
    PartialDelta,
    Round,
    RoundKey,
    RoundSpec,
    RoundState,
    StartRequest,
)
from fleet.protocol import (
    Announce,
    Delta,
    DeviceState,
    Status,
    Task,
    delta_coding,
    reason_name,
    topics,
)
from fleet.protocol.fields import CHUNK_BYTES, PREFIX_BYTES

# Rounds beyond this many are forgotten, oldest first, once they have ended.
KEPT_ROUNDS = 64
# How long after (re)connecting the broker's retained tasks and chunks are collected before
# what is missing is published again.
PROBE_SECONDS = 2.0
MIN_BLOB_EXPIRY_SECONDS = 3600

LATE, DUPLICATE = "late", "duplicate"
REFUSALS = (
    "unknown-round",
    "not-in-cohort",
    "wrong-plan",
    "wrong-weights",
    "malformed",
    "inconsistent-chunks",
    "crc",
    "coding",
    "range",
)


@dataclass
class _Probe:
    """What the broker still holds, as far as it has told since the connection was made."""

    until: float
    filters: list[str]
    tasks: dict[str, RoundKey] = field(default_factory=dict)
    chunks: dict[bytes, set[int]] = field(default_factory=dict)


class RoundLogic:
    """The rounds of one gateway."""

    def __init__(self, fleet: str, gateway: str, serves: Callable[[str], bool]) -> None:
        """``serves`` says whether a device belongs to this gateway."""
        self.fleet = fleet
        self.gateway = gateway
        self.serves = serves
        self.devices: dict[str, Announce] = {}
        self.statuses: dict[str, Status] = {}
        self.rounds: dict[RoundKey, Round] = {}
        self.blobs: dict[bytes, tuple[BlobSize, float]] = {}  # size, retained until
        self._probe: _Probe | None = None

    def restore(
        self,
        devices: Mapping[str, Announce],
        statuses: Mapping[str, Status],
        rounds: Mapping[RoundKey, Round],
        blobs: Mapping[bytes, tuple[BlobSize, float]],
    ) -> None:
        """Go on from what the store has; ``rounds`` in the order in which they were started."""
        self.devices = dict(devices)
        self.statuses = dict(statuses)
        self.rounds = dict(rounds)
        self.blobs = dict(blobs)

    # ---- what devices say ------------------------------------------------------------

    def announce(self, device: str, payload: bytes, now: float, token: object) -> list[Action]:
        """A device says what it is."""
        try:
            message = Announce.decode(payload)
            self._check_sender(device, message.device, message.KIND)
        except ProtocolError as error:
            return [act.Log(f"device {device}: {error}", warning=True), act.Acknowledge(token)]
        actions: list[Action] = []
        if self.devices.get(device) != message:
            actions.append(act.Log(f"device {device} announced itself, board {message.board}"))
        self.devices[device] = message
        return [*actions, act.SaveAnnounce(message, now), act.Acknowledge(token)]

    def status(self, device: str, payload: bytes, now: float, token: object) -> list[Action]:
        """A device says what it is doing."""
        actions = self.tick(now)
        try:
            message = Status.decode(payload)
            self._check_sender(device, message.device, message.KIND)
        except ProtocolError as error:
            actions += [act.Log(f"device {device}: {error}", warning=True)]
            return [*actions, act.Acknowledge(token)]
        self.statuses[device] = message
        actions.append(act.SaveStatus(message, now))
        actions += self._note_decline(device, message)
        found = self.rounds.get(RoundKey(message.campaign, message.round))
        if found and found.open and found.settled:
            actions += self._end(found, RoundState.CLOSED, now)
        return [*actions, act.Acknowledge(token)]

    def _check_sender(self, device: str, said: str, kind: str) -> None:
        if said != device:
            raise ProtocolError(kind, "device", f"is {said}, the topic says {device}")

    def _note_decline(self, device: str, status: Status) -> list[Action]:
        key = RoundKey(status.campaign, status.round)
        found = self.rounds.get(key)
        if not found or not found.open or device not in found.spec.tasks:
            return []
        if device in found.accepted:
            return []
        if status.state in (DeviceState.DECLINED, DeviceState.FAILED):
            if found.declined.get(device) == status.reason:
                return []
            found.declined[device] = status.reason
            return [
                act.SaveDecline(key, device, status.reason),
                act.Log(f"{key}: device {device} declined: {reason_name(status.reason)}"),
            ]
        if device in found.declined and status.state not in (DeviceState.OFFLINE, DeviceState.IDLE):
            del found.declined[device]  # it was reset and works on the task again
            return [act.SaveDecline(key, device, None)]
        return []

    def chunk(self, device: str, payload: bytes, now: float, token: object) -> list[Action]:
        """A chunk of a delta arrives; it is acknowledged whatever becomes of it."""
        actions = self.tick(now)
        try:
            delta = Delta.decode(payload)
        except ProtocolError as error:
            key = self._busy_with(device)
            actions += self._count(key, "malformed", device, str(error), now)
            return [*actions, act.Acknowledge(token)]
        problem = self._problem_with(device, delta)
        if problem:
            kind, detail = problem
            key = RoundKey(delta.campaign, delta.round)
            # Once per delta, not once per chunk of it.
            if delta.chunk + 1 >= delta.chunks or kind == "inconsistent-chunks":
                known = key if key in self.rounds else self._busy_with(device)
                actions += self._count(known, kind, device, detail, now)
        else:
            actions += self._add_chunk(device, delta, now)
        return [*actions, act.Acknowledge(token)]

    def _problem_with(self, device: str, delta: Delta) -> tuple[str, str] | None:
        """Why a chunk can't be used whatever the other chunks are: what to count, and why."""
        key = RoundKey(delta.campaign, delta.round)
        found = self.rounds.get(key)
        if found is None:
            return "unknown-round", f"{key} isn't known here"
        if device not in found.spec.tasks:
            return "not-in-cohort", f"{key} has no task for this device"
        if device in found.accepted:
            return DUPLICATE, f"{key} has its delta already"
        if not found.open:
            return LATE, f"{key} is {found.state}"
        plan, weights = found.spec.tasks[device]
        if delta.plan != plan[:PREFIX_BYTES]:
            return "wrong-plan", f"plan {delta.plan.hex()}…, the task says {plan.hex()[:16]}…"
        if delta.weights != weights[:PREFIX_BYTES]:
            return (
                "wrong-weights",
                f"trained from {delta.weights.hex()}…, the task says {weights.hex()[:16]}…",
            )
        if max(delta.correct_before, delta.correct_after) > delta.held_out_samples:
            return "range", f"more right answers than its {delta.held_out_samples} samples"
        most = self._most_samples(found.spec, device)
        if delta.train_samples > most:
            return "range", f"claims {delta.train_samples} training samples, it may have {most}"
        # Limits what a device can make the store keep, before anything of it is kept.
        if delta.coded_bytes > delta_coding.max_coded_bytes(found.spec.plans[plan]):
            return "coding", f"{delta.coded_bytes} bytes are more than the plan's values can take"
        chunks = max(1, -(-delta.coded_bytes // CHUNK_BYTES))
        if delta.chunks != chunks or delta.chunk >= chunks:
            return (
                "inconsistent-chunks",
                f"chunk {delta.chunk} of {delta.chunks}; {delta.coded_bytes} bytes are {chunks}",
            )
        size = min(CHUNK_BYTES, delta.coded_bytes - delta.chunk * CHUNK_BYTES)
        if len(delta.coded) != size:
            return (
                "inconsistent-chunks",
                f"chunk {delta.chunk} has {len(delta.coded)} bytes instead of {size}",
            )
        return None

    def _most_samples(self, spec: RoundSpec, device: str) -> int:
        """How many samples a device may have trained on: as many as it announced.

        A round's own limit keeps a device from announcing more and more while the round runs.
        """
        announced = self.devices[device].train_samples
        return min(announced, spec.most_samples.get(device, announced))

    def _add_chunk(self, device: str, delta: Delta, now: float) -> list[Action]:
        key = RoundKey(delta.campaign, delta.round)
        partials = self.rounds[key].partial
        header = replace(delta, chunk=0, coded=b"")
        actions: list[Action] = []
        partial = partials.get(device)
        if partial and partial.header != header:
            # The device may have started over with other samples: begin again with it.
            actions += self._count(
                key, "inconsistent-chunks", device, "chunks contradict each other", now
            )
            actions.append(act.DropChunks(key, device))
            partial = None
        if partial is None:
            partial = partials[device] = PartialDelta(header)
        if delta.chunk not in partial.received:
            partial.received.add(delta.chunk)
            actions.append(act.SaveChunk(key, device, delta))
            if len(partial.received) == delta.chunks:
                actions.append(act.Assemble(key, device))
        return actions

    def assembled(self, key: RoundKey, device: str, coded: bytes, now: float) -> list[Action]:
        """The chunks that ``Assemble`` asked for, laid end to end."""
        found = self.rounds[key]
        header = found.partial.pop(device).header
        plan, _ = found.spec.tasks[device]
        # A task that only scores has nothing to send but the scores (wire.md).
        count = found.spec.plans[plan] if header.train_samples else 0
        actions: list[Action] = [act.DropChunks(key, device)]
        if zlib.crc32(coded) != header.coded_crc32:
            return actions + self._count(key, "crc", device, "the CRC-32 doesn't match", now)
        try:
            values = delta_coding.decode(coded, count)
        except CodingError as error:
            return actions + self._count(key, "coding", device, error.problem, now)
        # An absurd value would make the whole round's sum useless, not just this delta.
        problem = found.spec.beyond_bounds(plan, values)
        if problem:
            return actions + self._count(key, "range", device, problem, now)
        found.accepted.add(device)
        found.declined.pop(device, None)
        started = found.deadline - found.spec.deadline_seconds
        actions += [
            act.Accept(key, device, plan, values, header, now - started),
            act.Log(
                f"{key}: delta of {device} accepted ({header.coded_bytes} bytes, "
                f"{len(found.accepted)} of {found.spec.target})"
            ),
        ]
        if found.settled:
            actions += self._end(found, RoundState.CLOSED, now)
        return actions

    def _busy_with(self, device: str) -> RoundKey | None:
        for key, found in self.rounds.items():
            if found.open and device in found.spec.tasks:
                return key
        return None

    def _count(
        self, key: RoundKey | None, kind: str, device: str, detail: str, now: float
    ) -> list[Action]:
        where = str(key) if key else "no round"
        text = f"{where}: delta of {device} not counted in, {kind}: {detail}"
        return [act.Count(key, kind, device, detail, now), act.Log(text, warning=True)]

    # ---- what the coordinator asks ---------------------------------------------------

    def start(self, request: StartRequest, now: float) -> list[Action]:
        """Begin a round; again with the same content changes nothing, else GatewayError.

        Doesn't look at the clock first (a refusal has no actions), so call ``tick`` before.
        """
        actions: list[Action] = []
        spec = RoundSpec.from_request(request, {k: size for k, (size, _) in self.blobs.items()})
        known = self.rounds.get(spec.key)
        if known:
            if known.spec.encode() != spec.encode():
                raise GatewayError(
                    f"start: {spec.key} exists with another content; use another round number"
                )
            return actions
        for device in spec.tasks:
            self._check_free(device)
        deadline = now + spec.deadline_seconds
        blobs = {bytes.fromhex(blob.sha256): blob for blob in request.blobs}
        for weights, blob in blobs.items():
            if weights not in self.blobs:
                self.blobs[weights] = BlobSize(len(blob.data), blob.chunk_bytes), 0.0
                actions.append(act.SaveBlob(blob, 0.0))
        for weights in spec.weights:
            actions += self._retain_blob(weights, deadline, now)
        self.rounds[spec.key] = Round(spec, deadline)
        actions.append(act.SaveRound(spec, now, deadline))
        actions += [self._publish_task(spec, device, deadline, now) for device in spec.tasks]
        actions.append(
            act.Log(
                f"{spec.key} started: {len(spec.tasks)} devices, {len(spec.plans)} plans, "
                f"closes at {spec.target} deltas or after {spec.deadline_seconds} s"
            )
        )
        return actions + self._forget_old_rounds()

    def _check_free(self, device: str) -> None:
        if not self.serves(device):
            raise GatewayError(
                f"start: device {device} isn't one of gateway {self.gateway}; "
                f"leave it out or add it to 'devices' in the gateway's configuration"
            )
        if device not in self.devices:
            raise GatewayError(
                f"start: device {device} has never announced itself to gateway "
                f"{self.gateway}; take devices from 'hello'"
            )
        busy = self._busy_with(device)
        if busy:
            raise GatewayError(
                f"start: device {device} is still in {busy}; wait for its end or cancel it"
            )

    def _retain_blob(self, weights: bytes, until: float, now: float) -> list[Action]:
        """Publish a blob unless the broker keeps it for long enough already."""
        size, published_until = self.blobs[weights]
        if published_until >= until:
            return []
        # Longer than the round, since later rounds may start from the same version.
        expiry = math.ceil(max(2 * (until - now), MIN_BLOB_EXPIRY_SECONDS))
        self.blobs[weights] = size, now + expiry
        return [
            act.KeepBlobUntil(weights, now + expiry),
            act.PublishChunks(weights, expiry),
            act.Log(f"weights {weights.hex()[:16]} published in {size.chunks} chunks"),
        ]

    def _publish_task(
        self, spec: RoundSpec, device: str, deadline: float, now: float
    ) -> act.Publish:
        task = spec.task(device, deadline - now)
        return act.Publish(
            topics.task(self.fleet, device),
            task.encode(),
            retain=True,
            expiry_seconds=task.deadline_seconds,
            response_topic=topics.delta(self.fleet, self.gateway, device),
        )

    def cancel(self, key: RoundKey, now: float) -> list[Action]:
        """End a round without its sums; nothing to do for one that has ended or isn't known."""
        actions = self.tick(now)
        found = self.rounds.get(key)
        if found and found.open:
            actions += self._end(found, RoundState.CANCELLED, now)
        return actions

    def state(self, key: RoundKey) -> RoundState:
        """Where a round stands."""
        found = self.rounds.get(key)
        return found.state if found else RoundState.UNKNOWN

    # ---- time ------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed: ends rounds whose deadline is over, and the look at the broker."""
        actions: list[Action] = []
        for found in list(self.rounds.values()):
            if found.open and (now >= found.deadline or found.settled):
                actions += self._end(found, RoundState.CLOSED, now)
        if self._probe and now >= self._probe.until:
            actions += self._finish_probe(self._probe, now)
            self._probe = None
        return actions

    def _end(self, found: Round, state: RoundState, now: float) -> list[Action]:
        key = found.spec.key
        found.state = state
        found.partial.clear()
        missing = sorted(found.waiting)
        text = f"{key} {state}: {len(found.accepted)} accepted, {len(found.declined)} declined"
        if missing:
            text += f", nothing from {', '.join(missing)}"
        return [
            act.SetState(key, state, now),
            *(self._clear_task(device) for device in found.spec.tasks),
            act.Log(text),
            act.RoundChanged(key),
        ]

    def _clear_task(self, device: str) -> act.Publish:
        return act.Publish(topics.task(self.fleet, device), b"", retain=True)

    def _forget_old_rounds(self) -> list[Action]:
        ended = [key for key, found in self.rounds.items() if not found.open]
        old = ended[: max(0, len(self.rounds) - KEPT_ROUNDS)]
        for key in old:
            del self.rounds[key]
        needed = {weights for found in self.rounds.values() for weights in found.spec.weights}
        unused = [weights for weights in self.blobs if weights not in needed] if old else []
        for weights in unused:
            del self.blobs[weights]
        return [*map(act.ForgetRound, old), *map(act.ForgetBlob, unused)]

    # ---- the connection to the broker ------------------------------------------------

    def connected(self, now: float) -> list[Action]:
        """The broker has let us in: subscribe, and look at what it still holds of our rounds.

        Whatever was published before a crash, ours or the broker's, may or may not have
        arrived; after ``PROBE_SECONDS`` what is missing is published again.
        """
        weights = {w for found in self.rounds.values() if found.open for w in found.spec.weights}
        probe = [topics.any_device(self.fleet, "task")]
        probe += [topics.any_chunk(self.fleet, w.hex()) for w in sorted(weights)]
        self._probe = _Probe(now + PROBE_SECONDS, probe, chunks={w: set() for w in weights})
        return [
            act.Subscribe(
                (
                    topics.any_delta(self.fleet, self.gateway),
                    topics.any_device(self.fleet, "announce"),
                    topics.any_device(self.fleet, "status"),
                    *probe,
                )
            )
        ]

    def task_seen(self, device: str, payload: bytes, token: object) -> list[Action]:
        """The broker holds this task for a device."""
        if self._probe:
            try:
                task = Task.decode(payload)
            except ProtocolError:
                self._probe.tasks.pop(device, None)
            else:
                self._probe.tasks[device] = RoundKey(task.campaign, task.round)
        return [act.Acknowledge(token)]

    def chunk_seen(self, weights: bytes, chunk: int, token: object) -> list[Action]:
        """The broker holds this chunk of a blob."""
        if self._probe and weights in self._probe.chunks:
            self._probe.chunks[weights].add(chunk)
        return [act.Acknowledge(token)]

    def _finish_probe(self, probe: _Probe, now: float) -> list[Action]:
        actions: list[Action] = [act.Unsubscribe(tuple(probe.filters))]
        for weights, seen in probe.chunks.items():
            size, until = self.blobs[weights]
            missing = [chunk for chunk in range(size.chunks) if chunk not in seen]
            if missing:
                expiry = max(MIN_BLOB_EXPIRY_SECONDS, math.ceil(until - now))
                self.blobs[weights] = size, now + expiry
                actions += [
                    act.KeepBlobUntil(weights, now + expiry),
                    act.PublishChunks(weights, expiry, missing),
                    act.Log(f"weights {weights.hex()[:16]}: {len(missing)} chunks put back"),
                ]
        for key, found in self.rounds.items():
            if found.open:
                for device in sorted(found.waiting):
                    if probe.tasks.get(device) != key:
                        actions += [
                            self._publish_task(found.spec, device, found.deadline, now),
                            act.Log(f"{key}: task of {device} put back"),
                        ]
        for device, key in probe.tasks.items():
            ended = self.rounds.get(key)
            if ended and not ended.open and device in ended.spec.tasks:
                actions.append(self._clear_task(device))
        return actions
