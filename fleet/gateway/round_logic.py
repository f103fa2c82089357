"""What a gateway does about rounds: a state machine without I/O.

Every method is an event; it returns the actions that follow from it (see
:mod:`fleet.gateway.actions`). Time comes in with the events. :mod:`fleet.gateway.core` joins it
with a store and a link to the broker, under a daemon's threads or in virtual time.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from fleet.errors import CodingError, GatewayError, ProtocolError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action, Filter
from fleet.gateway.changes import Changes
from fleet.gateway.devices import Devices, StoredDevice
from fleet.gateway.instant import Instant
from fleet.gateway.refusals import DUPLICATE, LATE, Refusal, problem_with
from fleet.gateway.requests import StartRequest
from fleet.gateway.retained import Retained
from fleet.gateway.rounds import PartialDelta, Report, Round, RoundKey, RoundState
from fleet.protocol import (
    Announce,
    Delta,
    DeviceState,
    Receipt,
    ReceiptResult,
    Status,
    reason_name,
    topics,
)
from fleet.protocol.chunks import chunk_count
from fleet.protocol.fields import uint16

# Rounds beyond this many are forgotten, oldest first, once they have ended.
KEPT_ROUNDS = 64
# By how much the wall clock may drift from the monotonic one before deadlines are stored anew.
WALL_STEP_SECONDS = 1.0
NAMES_IN_LOG = 10

BUSY, UNKNOWN, OLDER_LEASE = "busy", "unknown", "older-lease"


class Archive(Protocol):
    """What is asked of the store about rounds that have ended."""

    def counted(self, key: RoundKey, device: str) -> int | None:
        """The CRC-32 of a device's delta that was counted in a round; None where none was."""

    def cohort(self, key: RoundKey) -> Collection[str]:
        """The devices that had a task in a round."""


class RoundLogic:
    """The rounds of one gateway."""

    def __init__(
        self,
        fleet: str,
        gateway: str,
        serves: Callable[[str], bool],
        archive: Archive,
        epoch: int,
    ) -> None:
        """``serves`` says whether a device belongs to this gateway; ``epoch`` see `Changes`."""
        self.fleet = fleet
        self.gateway = gateway
        self.serves = serves
        self.changes: Changes[str | RoundKey] = Changes(epoch)
        self.devices = Devices(self.changes.touch)
        self.rounds: dict[RoundKey, Round] = {}
        self.blobs: dict[bytes, int] = {}
        self.strays: Counter[str] = Counter()
        """Deltas of no known round, by kind."""
        self.retained = Retained(fleet, self.rounds, self.blobs, archive.cohort)
        self._archive = archive
        self._open: dict[RoundKey, Round] = {}
        self._busy: dict[str, RoundKey] = {}
        self._wall_offset: float | None = None

    def restore(
        self,
        devices: Mapping[str, StoredDevice],
        rounds: Mapping[RoundKey, Round],
        blobs: Mapping[bytes, int],
        strays: Mapping[str, int],
        now: Instant,
    ) -> None:
        """Go on from what the store has; ``rounds`` in the order in which they were started."""
        self.devices.restore(devices, now)
        self.rounds.update(rounds)
        self.blobs.update(blobs)
        self.strays.update(strays)
        for key, found in rounds.items():
            self.changes.touch(key)
            if found.open:
                self._open[key] = found
                self._busy.update((name, key) for name in found.spec.tasks if found.has_task(name))
                # What was due meanwhile may be at the broker already: the look finds what isn't.
                found.take_due(now.monotonic)
        self._wall_offset = now.wall - now.monotonic
        self.retained.restore()

    # ---- what devices say ------------------------------------------------------------

    def announce(self, device: str, payload: bytes, retained: bool, now: Instant) -> list[Action]:
        """A device says what it is, or the broker what it last said."""
        try:
            message = Announce.decode(payload)
        except ProtocolError as error:
            return [act.Log(f"device {device}: {error}", logging.WARNING, device=device)]
        return self.devices.told(device, message, retained, now)

    def status(self, device: str, payload: bytes, retained: bool, now: Instant) -> list[Action]:
        """A device says what it is doing, or the broker what it last said."""
        actions = self._close_due(now)
        try:
            message = Status.decode(payload)
        except ProtocolError as error:
            return [*actions, act.Log(f"device {device}: {error}", logging.WARNING, device=device)]
        actions += self.devices.told(device, message, retained, now)
        found = self._open.get(RoundKey(message.campaign, message.round))
        if found:
            actions += self._note_decline(found, device, message)
            if found.settled:
                actions += self._end(found, RoundState.CLOSED, now)
        return actions

    def _note_decline(self, found: Round, device: str, status: Status) -> list[Action]:
        key = found.key
        if device not in found.spec.tasks or device in found.accepted:
            return []
        if status.state in (DeviceState.DECLINED, DeviceState.FAILED):
            if found.declined.get(device) == status.reason:
                return []
            found.declined[device] = status.reason
            return [
                act.SaveDecline(key, device, status.reason),
                act.Log(
                    f"{key}: device {device} declined: {reason_name(status.reason)}",
                    key=key,
                    device=device,
                ),
            ]
        if device in found.declined and status.state not in (DeviceState.OFFLINE, DeviceState.IDLE):
            del found.declined[device]  # it was reset and works on the task again
            return [act.SaveDecline(key, device, None)]
        return []

    def delta(self, device: str, payload: bytes, retained: bool, now: Instant) -> list[Action]:
        """A chunk of a delta arrives."""
        actions = self._close_due(now)
        if retained:
            if not payload:
                return actions
            # A delta is never retained; nobody but us takes this one away.
            topic = topics.delta(self.fleet, self.gateway, device)
            actions.append(act.Publish(topic, b"", retain=True))
        try:
            delta = Delta.decode(payload)
        except ProtocolError as error:
            key = self._busy.get(device)
            return actions + self._count(key, "malformed", device, str(error), now)
        refusal = self._refusal_of(device, delta)
        if refusal is None:
            return actions + self._add_chunk(device, delta, len(payload), now)
        # Once per delta, not once per chunk of it.
        if delta.chunk + 1 >= delta.chunks or refusal.kind == "inconsistent-chunks":
            actions += self._refuse(device, delta, refusal, now)
        return actions

    def _refusal_of(self, device: str, delta: Delta) -> Refusal | None:
        """Why a chunk can't be used whatever the other chunks are."""
        key = RoundKey(delta.campaign, delta.round)
        found = self.rounds.get(key)
        if found is None:
            return Refusal("unknown-round", f"{key} isn't known here")
        if found.open and device not in found.spec.tasks:
            return Refusal("not-in-cohort", f"{key} has no task for this device")
        counted = found.accepted.get(device) if found.open else self._archive.counted(key, device)
        if counted is not None:
            detail = f"{key} has its delta already"
            return Refusal(DUPLICATE, detail, ReceiptResult.COUNTED, counted)
        if not found.open:
            return Refusal(LATE, f"{key} is {found.state}", ReceiptResult.LATE)
        announced = self.devices.announced(device)
        assert announced is not None, "only devices that have announced themselves get tasks"
        return problem_with(found.spec, device, announced.train_samples, delta)

    def _refuse(self, device: str, delta: Delta, why: Refusal, now: Instant) -> list[Action]:
        key = RoundKey(delta.campaign, delta.round)
        known = key if key in self.rounds else self._busy.get(device)
        actions = self._count(known, why.kind, device, why.detail, now)
        if why.result is not None:
            crc32 = delta.coded_crc32 if why.counted_crc32 is None else why.counted_crc32
            actions.append(self._receipt(device, delta, why.result, crc32))
        return actions

    def _receipt(self, device: str, delta: Delta, result: ReceiptResult, crc32: int) -> act.Publish:
        receipt = Receipt(delta.lease, delta.campaign, delta.round, result, crc32)
        topic = topics.receipt(self.fleet, device)
        return act.Publish(topic, receipt.encode(), retain=False, qos=0)

    def _add_chunk(
        self, device: str, delta: Delta, payload_bytes: int, now: Instant
    ) -> list[Action]:
        key = RoundKey(delta.campaign, delta.round)
        partials = self._open[key].partial
        partial = partials.get(device)
        if delta.chunks == 1 and partial is None:
            return self._complete(device, delta, delta.coded, payload_bytes, now)
        header = replace(delta, chunk=0, coded=b"")
        if partial and partial.header != header:
            # The device may have started over with other samples: begin again with it.
            del partials[device]
            problem = "chunks contradict each other"
            return [
                *self._count(key, "inconsistent-chunks", device, problem, now),
                act.DropChunks(key, device),
                *self._add_chunk(device, delta, payload_bytes, now),
            ]
        if partial is None:
            partial = partials[device] = PartialDelta(header)
        if delta.chunk in partial.received:
            return []
        partial.received.add(delta.chunk)
        partial.payload_bytes += payload_bytes
        actions: list[Action] = [act.KeepChunk(key, device, delta.chunk, delta.coded)]
        if len(partial.received) == delta.chunks:
            actions.append(act.Assemble(key, device))
        return actions

    def assembled(self, key: RoundKey, device: str, coded: bytes, now: Instant) -> list[Action]:
        """The chunks that ``Assemble`` asked for, laid end to end."""
        partial = self._open[key].partial.pop(device)
        return [
            act.DropChunks(key, device),
            *self._complete(device, partial.header, coded, partial.payload_bytes, now),
        ]

    def _complete(
        self, device: str, header: Delta, coded: bytes, payload_bytes: int, now: Instant
    ) -> list[Action]:
        """All of a delta is there; ``header`` is any of its chunks."""
        key = RoundKey(header.campaign, header.round)
        found = self._open[key]
        spec = found.spec
        task = spec.tasks[device]
        plan = spec.plans[task.plan]
        if zlib.crc32(coded) != header.coded_crc32:
            return self._count(key, "crc", device, "the CRC-32 doesn't match", now)
        # A task that only scores has nothing to send but the scores (wire.md).
        try:
            decoded = spec.form.decode(coded, plan.values if header.train_samples else 0)
        except CodingError as error:
            return self._refuse(device, header, Refusal("coding", error.problem), now)
        # An absurd value would make the whole round's sum useless, not just this delta.
        problem = plan.beyond_bounds(decoded.values)
        if problem:
            return self._refuse(device, header, Refusal("range", problem), now)
        report = Report(
            device,
            task.plan,
            header.coded_crc32,
            header.train_samples,
            header.train_steps,
            header.held_out_samples,
            header.correct_before,
            header.correct_after,
            header.loss_before_thousandths,
            header.loss_after_thousandths,
            header.correct_local,
            header.kept,
            header.coded_bytes,
            payload_bytes,
            now.monotonic - found.due(device),
            decoded.nonce,
            decoded.seals,
        )
        actions: list[Action] = [
            act.Accept(
                key,
                len(found.accepted) + 1,
                report,
                found.part + spec.part_of(device),
                spec.weight(header.train_samples),
                decoded.values,
                coded,
            ),
            self._receipt(device, header, ReceiptResult.COUNTED, header.coded_crc32),
            act.Log(f"{key}: delta of {device} accepted", logging.DEBUG, key, device),
        ]
        found.accepted[device] = header.coded_crc32
        found.declined.pop(device, None)
        if spec.fold.by_arrival:
            self._busy.pop(device, None)
            actions += [self.retained.clear_task(device), act.RoundChanged(key)]
        if found.settled:
            actions += self._end(found, RoundState.CLOSED, now)
        return actions

    def _count(
        self, key: RoundKey | None, kind: str, device: str, detail: str, now: Instant
    ) -> list[Action]:
        if key is None:
            self.strays[kind] += 1
        else:
            self.rounds[key].counters[kind] += 1
            self.changes.touch(key)
        where = str(key) if key else "no round"
        text = f"{where}: delta of {device} not counted in, {kind}: {detail}"
        # Duplicates come where a receipt was lost on its way.
        level = logging.DEBUG if kind == DUPLICATE else logging.WARNING
        return [act.Count(key, kind, device, detail, now.wall), act.Log(text, level, key, device)]

    # ---- what the coordinator asks ---------------------------------------------------

    def start(self, request: StartRequest, now: Instant) -> list[Action]:
        """Begin a round; again with the same content changes nothing, else GatewayError.

        Doesn't look at the clock first (a refusal has no actions), so call ``tick`` before.
        """
        known = self.rounds.get(request.key)
        if known:
            if known.content != request.content:
                raise GatewayError(
                    f"start: {request.key} exists with another content; use another round number"
                )
            return []
        data = request.blob_data()
        self._check_weights(request, data)
        refused = {
            device: why
            for device, task in request.spec.tasks.items()
            if (why := self._why_not(device, task.lease))
        }
        tasks = {name: of for name, of in request.spec.tasks.items() if name not in refused}
        spec = replace(request.spec, tasks=tasks)
        seconds = spec.seconds
        found = Round(spec, request.content, now.monotonic + seconds, refused)
        self.retained.check(found)
        actions: list[Action] = []
        for weights in sorted(found.weights - self.blobs.keys()):
            self.blobs[weights] = len(data[weights])
            actions.append(act.SaveBlob(weights, data[weights]))
        self.rounds[spec.key] = self._open[spec.key] = found
        self.changes.touch(spec.key)
        self._busy.update(dict.fromkeys(tasks, spec.key))
        actions += self.devices.raise_leases({name: of.lease for name, of in tasks.items()})
        actions += [
            act.SaveRound(spec, found.content, refused, now.wall, now.wall + seconds),
            act.Log(
                f"{spec.key} started: {len(tasks)} devices, {len(refused)} refused, "
                f"{len(spec.plans)} plans, {len(found.held_back)} held back, "
                f"closes at {spec.target} deltas or after {seconds:.0f} s",
                key=spec.key,
            ),
            *self.retained.started(found, now),
        ]
        if found.settled:
            actions += self._end(found, RoundState.CLOSED, now)
        return actions + self._forget_old_rounds()

    def _check_weights(self, request: StartRequest, data: Mapping[bytes, bytes]) -> None:
        for weights in request.spec.weights - data.keys():
            size = self.blobs.get(weights)
            if size is None:
                raise GatewayError(
                    f"start: no blob has the weights {weights.hex()}; put them into 'blobs'"
                )
            if chunk_count(size, request.chunk_bytes) > uint16.most + 1:
                raise GatewayError(
                    f"start: chunk_bytes {request.chunk_bytes} cuts the weights "
                    f"{weights.hex()[:16]}… into too many chunks; make it larger"
                )

    def _why_not(self, device: str, lease: int) -> str:
        """Why a device can't have a task; empty where it can."""
        if not self.serves(device) or self.devices.announced(device) is None:
            return UNKNOWN
        if lease < self.devices.lease(device):
            return OLDER_LEASE
        return BUSY if device in self._busy else ""

    def cancel(self, key: RoundKey, now: Instant) -> list[Action]:
        """End a round without its sums; nothing to do for one that has ended or isn't known."""
        actions = self._close_due(now)
        found = self._open.get(key)
        if found:
            actions += self._end(found, RoundState.CANCELLED, now)
        return actions

    def close_part(self, key: RoundKey, part: int) -> list[Action]:
        """What comes from now on goes to the next part; GatewayError where this one isn't there.

        Again for the one that was closed last changes nothing. Whoever asks for a part has those
        before it for good.
        """
        found = self.rounds.get(key)
        if found is None or found.state is RoundState.CANCELLED:
            return []
        if not found.spec.fold.by_arrival:
            raise GatewayError(f"collect: {key} has no parts; its fold is {found.spec.fold.name}")
        if not found.part - 1 <= part <= found.part:
            raise GatewayError(
                f"collect: part {part} of {key} isn't there (any more); deltas go to {found.part}"
            )
        if part < found.part:
            return []
        found.part, found.closed_through = part + 1, found.tally.accepted
        return [act.ClosePart(key, part, found.closed_through)]

    def arrived(self, campaign: bytes) -> int:
        """How many deltas of a campaign lie in parts that nobody has asked for yet.

        Other threads ask as well, hence the copy.
        """
        return sum(of.arrived for of in list(self.rounds.values()) if of.key.campaign == campaign)

    def state(self, key: RoundKey) -> RoundState:
        """Where a round stands."""
        found = self.rounds.get(key)
        return found.state if found else RoundState.UNKNOWN

    # ---- time ------------------------------------------------------------------------

    def tick(self, now: Instant) -> list[Action]:
        """Time has passed."""
        actions = [*self._note_wall_clock(now), *self._close_due(now)]
        for key, found in self._open.items():
            actions += [act.PublishTask(key, name) for name in found.take_due(now.monotonic)]
        looked = self.retained.looking
        actions += self.retained.tick(now)
        if looked and not self.retained.looking:
            self.devices.settled()
        return actions + self.devices.tick(now)

    def _note_wall_clock(self, now: Instant) -> list[Action]:
        """Deadlines in the store are of the wall clock; where that steps they step with it."""
        offset = now.wall - now.monotonic
        if self._wall_offset is None:
            self._wall_offset = offset
        if abs(offset - self._wall_offset) <= WALL_STEP_SECONDS:
            return []
        self._wall_offset = offset
        return [act.SaveDeadline(key, of.deadline + offset) for key, of in self._open.items()]

    def _close_due(self, now: Instant) -> list[Action]:
        actions: list[Action] = []
        for found in list(self._open.values()):
            if now.monotonic >= found.deadline or found.settled:
                actions += self._end(found, RoundState.CLOSED, now)
        return actions

    def _end(self, found: Round, state: RoundState, now: Instant) -> list[Action]:
        key, waiting = found.key, sorted(found.waiting)
        tasks = [device for device in found.spec.tasks if found.has_task(device)]
        found.end(state)
        del self._open[key]
        for device in tasks:
            self._busy.pop(device, None)
        self.changes.touch(key)
        tally = found.tally
        text = f"{key} {state}: {tally.accepted} accepted, {sum(tally.declined.values())} declined"
        if waiting:
            text += f", nothing from {', '.join(itertools.islice(waiting, NAMES_IN_LOG))}"
        if len(waiting) > NAMES_IN_LOG:
            text += f" and {len(waiting) - NAMES_IN_LOG} others"
        return [
            act.SetState(key, state, now.wall),
            *self.retained.ended(found, tasks),
            act.Log(text, key=key),
            act.RoundChanged(key),
        ]

    def _forget_old_rounds(self) -> list[Action]:
        ended = [key for key, found in self.rounds.items() if not found.open]
        old = ended[: max(0, len(self.rounds) - KEPT_ROUNDS)]
        for key in old:
            del self.rounds[key]
            self.changes.forget(key)
        needed = {weights for found in self.rounds.values() for weights in found.weights}
        unused = [weights for weights in self.blobs if weights not in needed] if old else []
        for weights in unused:
            del self.blobs[weights]
        return [*map(act.ForgetRound, old), *map(act.ForgetBlob, unused)]

    # ---- the connection to the broker ------------------------------------------------

    def connected(self, now: Instant) -> list[Action]:
        """The broker has let us in: subscribe, and look at what it still holds of our rounds."""
        self.devices.connected()
        return [
            act.Subscribe(
                (
                    Filter(
                        topics.any_delta(self.fleet, self.gateway),
                        no_local=True,
                        retain_as_published=True,
                    ),
                    Filter(topics.any_device(self.fleet, "announce")),
                    Filter(topics.any_device(self.fleet, "status")),
                    *self.retained.connected(now),
                )
            )
        ]
