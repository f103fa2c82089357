"""What lies retained at the broker: tasks and weights of the rounds that run, and nothing else.

The broker may lose all of it at any instant. After every connection the gateway looks at what is
there, puts back what is missing and takes away what is over. Weights are there as long as an open
round starts from them; gateways that share a broker share their topics. Chunk 0 comes last and goes
last, and every gateway listens to the chunks with that number: what another has published isn't
published again, since devices that are fetching it would get it twice, and what another has taken
away while it is still needed is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from fleet.errors import GatewayError, ProtocolError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action, Filter
from fleet.gateway.instant import Instant
from fleet.gateway.rounds import Round, RoundKey
from fleet.protocol import Task, fields, topics
from fleet.protocol.chunks import CRC_BYTES, chunk_count

# The look is over when nothing retained has come for so long, or after so long in all.
QUIET_SECONDS = 2.0
LOOK_SECONDS = 60.0
# Twice what the longest round can take, so that weights outlive the rounds that start from them.
# Ends what a gateway left behind that never came back.
CHUNK_EXPIRY_SECONDS = 2 * (fields.MAX_DELAY_SECONDS + fields.DEADLINE_SECONDS.most)


@dataclass
class _Look:
    """What the broker still holds, as far as it has told since the connection was made."""

    quiet_at: float
    ends_at: float
    topics: list[str]
    tasks: dict[str, RoundKey | None] = field(default_factory=dict)
    chunks: dict[bytes, set[int]] = field(default_factory=dict)
    versions: set[bytes] = field(default_factory=set)


class Retained:
    """Looks after the broker's retained messages for the rounds of one gateway."""

    def __init__(
        self,
        fleet: str,
        rounds: Mapping[RoundKey, Round],
        blobs: Mapping[bytes, int],
        cohort: Callable[[RoundKey], Collection[str]],
    ) -> None:
        """``rounds`` and ``blobs`` (sizes by digest) are its owner's and change.

        ``cohort`` tells the devices of a round that has ended.
        """
        self._fleet = fleet
        self._rounds = rounds
        self._blobs = blobs
        self._cohort = cohort
        self._look: _Look | None = None
        # Versions that this gateway has, or may have, at the broker: until when, if it knows.
        self._published: dict[bytes, float] = {}
        # Bytes of chunk 0 of what others have there, by the prefix of the version's digest.
        self._of_others: dict[bytes, int] = {}

    def restore(self) -> None:
        """After a crash anything of the kept rounds may lie at the broker."""
        self._published = dict.fromkeys(
            (weights for found in self._rounds.values() for weights in found.weights), 0.0
        )

    def _chunk_bytes(self, weights: bytes, but: Round | None = None) -> int | None:
        """How an open round other than ``but`` wants these weights cut; None where none does."""
        for found in self._rounds.values():
            if found.open and found is not but and weights in found.weights:
                return found.spec.parameters.chunk_bytes
        return None

    # ---- rounds begin and end --------------------------------------------------------

    def check(self, started: Round) -> None:
        """GatewayError where a round can't be published beside those that run."""
        for weights in started.weights:
            cut = self._chunk_bytes(weights, started)
            if cut not in (None, started.spec.parameters.chunk_bytes):
                raise GatewayError(
                    f"start: the weights {weights.hex()[:16]}… are at the broker in chunks of "
                    f"{cut} bytes for another round; take 'chunk_bytes' {cut} or wait for its end"
                )

    def started(self, found: Round, now: Instant) -> list[Action]:
        """Publish what a new round needs and the broker doesn't keep long enough already."""
        actions: list[Action] = []
        for weights in sorted(found.weights):
            shared = self._chunk_bytes(weights, found) is not None
            if shared and self._published.get(weights, 0.0) >= found.deadline:
                continue
            cut = found.spec.parameters.chunk_bytes
            if not shared and self._is_of_another(weights, cut):
                actions.append(act.Log(f"weights {weights.hex()[:16]} are there by another"))
                continue
            self._published[weights] = now.monotonic + CHUNK_EXPIRY_SECONDS
            actions += [
                act.PublishChunks(weights, cut, CHUNK_EXPIRY_SECONDS),
                act.Log(
                    f"weights {weights.hex()[:16]} published in "
                    f"{chunk_count(self._blobs[weights], cut)} chunks"
                ),
            ]
        return actions + [
            act.PublishTask(found.key, device)
            for device, task in found.spec.tasks.items()
            if not task.delay_seconds
        ]

    def _is_of_another(self, weights: bytes, cut: int) -> bool:
        """Whether another gateway has these weights at the broker, cut in this way."""
        first = min(cut, self._blobs[weights]) + CRC_BYTES
        return self._of_others.get(weights[: fields.PREFIX_BYTES]) == first

    def ended(self, found: Round, devices: Collection[str]) -> list[Action]:
        """Take away what only this round needed; ``devices`` are those that have a task of it."""
        actions: list[Action] = [self.clear_task(device) for device in devices]
        for weights in sorted(found.weights):
            if weights in self._published and self._chunk_bytes(weights) is None:
                actions.append(self._clear_chunks(weights, found))
        return actions

    def clear_task(self, device: str) -> act.Publish:
        """A device has nothing to do any more."""
        return act.Publish(topics.task(self._fleet, device), b"", retain=True)

    def _clear_chunks(self, weights: bytes, of: Round) -> act.ClearChunks:
        size = self._blobs[weights]
        return act.ClearChunks(weights, chunk_count(size, of.spec.parameters.chunk_bytes))

    # ---- the connection to the broker ------------------------------------------------

    def connected(self, now: Instant) -> list[Filter]:
        """The broker has let us in: what to subscribe to in order to see what it holds."""
        chunks: dict[bytes, set[int]] = {
            weights: set()
            for found in self._rounds.values()
            if found.open
            for weights in found.weights
        }
        self._of_others.clear()
        looks_at = [topics.any_task(self._fleet)]
        looks_at += [topics.any_chunk(self._fleet, weights) for weights in sorted(chunks)]
        self._look = _Look(
            now.monotonic + QUIET_SECONDS,
            now.monotonic + LOOK_SECONDS,
            looks_at,
            chunks=chunks,
        )
        first = Filter(topics.any_first_chunk(self._fleet), no_local=True)
        return [first, *map(Filter, looks_at)]

    def task_seen(self, device: str, payload: bytes, now: Instant) -> list[Action]:
        """The broker holds this task for a device, or has been told to."""
        if self._look:
            self._look.quiet_at = now.monotonic + QUIET_SECONDS
            self._look.tasks.pop(device, None)
            if payload:
                try:
                    task = Task.decode(payload)
                except ProtocolError:
                    self._look.tasks[device] = None
                else:
                    self._look.tasks[device] = RoundKey(task.campaign, task.round)
        return []

    def chunk_seen(
        self, prefix: bytes, chunk: int, payload: bytes, retained: bool, now: Instant
    ) -> list[Action]:
        """The broker holds this chunk of some weights, or has just been told to drop it."""
        if not chunk and not payload:
            self._of_others.pop(prefix, None)
        mine = next((w for w in self._published if w.startswith(prefix)), None)
        if mine is None and not chunk and payload:
            self._of_others[prefix] = len(payload)
        needed = (w for found in self._rounds.values() if found.open for w in found.weights)
        weights = mine or next((w for w in needed if w.startswith(prefix)), None)
        if weights is None:
            return []
        look = self._look
        if look:
            look.quiet_at = now.monotonic + QUIET_SECONDS
            look.versions.add(weights)
            seen = look.chunks.get(weights, set())
            if payload:
                seen.add(chunk)
            else:
                seen.discard(chunk)
        if chunk:
            return []
        cut = self._chunk_bytes(weights)
        if cut is None and retained and payload:
            # Left behind, since the gateway was killed or cut off before it was all gone.
            for found in reversed([*self._rounds.values()]):
                if weights in found.weights:
                    return [self._clear_chunks(weights, found)]
        if cut is not None and not payload:
            self._published[weights] = now.monotonic + CHUNK_EXPIRY_SECONDS
            return [
                act.PublishChunks(weights, cut, CHUNK_EXPIRY_SECONDS),
                act.Log(f"weights {weights.hex()[:16]} were taken away by another; put back"),
            ]
        return []

    @property
    def looking(self) -> bool:
        """Whether what is retained is still coming in."""
        return self._look is not None

    def tick(self, now: Instant) -> list[Action]:
        """Time has passed: after the look, put back and take away."""
        look = self._look
        if look is None or now.monotonic < min(look.quiet_at, look.ends_at):
            return []
        self._look = None
        for weights in [*self._published]:
            if weights not in look.versions and self._chunk_bytes(weights) is None:
                del self._published[weights]  # gone for sure
        return [
            act.Unsubscribe(tuple(look.topics)),
            *self._put_back_chunks(look, now),
            *self._put_back_tasks(look, now),
            *self._take_away_tasks(look),
        ]

    def _put_back_chunks(self, look: _Look, now: Instant) -> list[Action]:
        actions: list[Action] = []
        for weights, seen in look.chunks.items():
            cut = self._chunk_bytes(weights)
            if cut is None:
                continue  # the round has ended meanwhile
            count = chunk_count(self._blobs[weights], cut)
            missing = [chunk for chunk in range(count) if chunk not in seen]
            if not missing:
                continue
            if len(missing) == count:
                self._published[weights] = now.monotonic + CHUNK_EXPIRY_SECONDS
            actions += [
                act.PublishChunks(weights, cut, CHUNK_EXPIRY_SECONDS, missing),
                act.Log(f"weights {weights.hex()[:16]}: {len(missing)} chunks put back"),
            ]
        return actions

    def _put_back_tasks(self, look: _Look, now: Instant) -> list[Action]:
        actions: list[Action] = []
        for key, found in self._rounds.items():
            if not found.open:
                continue
            missing = [
                name
                for name in sorted(found.waiting)
                if look.tasks.get(name) != key
                and found.due(name) <= now.monotonic
                and found.seconds_left(name, now.monotonic) > 0
            ]
            actions += [act.PublishTask(key, device) for device in missing]
            for device in missing:
                # Takes the place of what lies there. Were that taken away, the device would leave
                # the round, which it doesn't begin again (wire.md).
                look.tasks.pop(device, None)
            if missing:
                actions.append(act.Log(f"{key}: {len(missing)} tasks put back", key=key))
        return actions

    def _take_away_tasks(self, look: _Look) -> list[Action]:
        actions: list[Action] = []
        over: dict[RoundKey, list[str]] = {}
        for device, key in look.tasks.items():
            found = self._rounds.get(key) if key else None
            if found is None:
                continue
            if not found.open:
                over.setdefault(found.key, []).append(device)
            elif not found.has_task(device):
                actions.append(self.clear_task(device))
        for key, devices in over.items():
            # Another gateway may have a part in the same round, and its own devices.
            mine = self._cohort(key)
            actions += [self.clear_task(device) for device in devices if device in mine]
        return actions
