"""Round logic, store and link joined: one batch of events at a time, no thread and no waiting.

All of a batch is one transaction; only after it is on disk come publications, receipts among them,
and answers (group commit). The daemon drives this with threads, the tests in virtual time.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast, get_args

from fleet.clock import Clock
from fleet.errors import FleetError, ProtocolError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action, Publication, StoreAction
from fleet.gateway.config import GatewaySettings
from fleet.gateway.instant import Instant
from fleet.gateway.link import Link
from fleet.gateway.round_logic import RoundLogic
from fleet.gateway.rounds import RoundKey
from fleet.gateway.store import RoundStore
from fleet.protocol import topics
from fleet.protocol.chunks import chunks_of

# So many publications follow a batch beside those that its messages bring about: a start for ten
# thousand devices doesn't make others wait.
SENT_AT_ONCE = 64
PUBLICATIONS_OF_A_MESSAGE = 2

_STORE_ACTIONS = get_args(StoreAction)
_PUBLICATIONS = get_args(Publication)

log = logging.getLogger(__name__)

Work = Callable[[Instant], tuple[list[Action], Any]]


@dataclass(frozen=True)
class Job:
    """An event: gives actions, and maybe a value for a waiting caller."""

    run: Work
    reply: Future[Any] | None = None


class Core:
    """A gateway without its threads."""

    def __init__(
        self,
        settings: GatewaySettings,
        store: RoundStore,
        link: Link,
        clock: Clock,
        epoch: int,
        round_changed: Callable[[RoundKey], None] = lambda key: None,
        watchers: Sequence[Callable[[Action], None]] = (),
    ) -> None:
        """Go on from what ``store`` has; ``epoch`` is 1 … 2^31-1 and new for every process.

        ``watchers`` are told each action once it is done: those of the store within their
        transaction, publications when the link has them.
        """
        self.settings = settings
        self.store = store
        self._link = link
        self._clock = clock
        self._round_changed = round_changed
        self._watchers = watchers
        self._unsent: deque[Publication] = deque()
        self.logic = RoundLogic(settings.fleet, settings.gateway, settings.serves, store, epoch)
        now = Instant.of(clock)
        self.logic.restore(*store.load(now), now)

    # ---- events ----------------------------------------------------------------------

    def connected(self) -> Job:
        """The broker has let us in."""
        return Job(lambda now: (self.logic.connected(now), None))

    def arrived(self, topic: str, payload: bytes, retained: bool) -> Job:
        """A message came from the broker."""
        return Job(lambda now: (self._message(topic, payload, retained, now), None))

    def _message(self, topic: str, payload: bytes, retained: bool, now: Instant) -> list[Action]:
        try:
            parts = topics.parse(topic)
        except ProtocolError as error:
            return [act.Log(str(error), logging.WARNING)]
        logic, device = self.logic, parts.device
        if parts.kind == "blob":
            return logic.retained.chunk_seen(parts.prefix, parts.chunk, payload, retained, now)
        if not self.settings.serves(device):
            return []
        match parts.kind:
            case "announce":
                return logic.announce(device, payload, retained, now)
            case "status":
                return logic.status(device, payload, retained, now)
            case "task":
                return logic.retained.task_seen(device, payload, now)
            case "delta":
                return logic.delta(device, payload, retained, now)
        return []

    # ---- the one thread that owns logic and store ------------------------------------

    @property
    def unsent(self) -> int:
        """How much is left to be published after the next batches."""
        return len(self._unsent)

    def work(self, jobs: Iterable[Job]) -> None:
        """Do a batch: decide, write, then publish and answer."""
        replies: list[tuple[Future[Any], Any]] = []
        others: list[Action] = []
        count = 0
        with self.store.transaction():
            tick = Job(lambda now: (self.logic.tick(now), None))
            for job in (tick, *jobs):
                now = Instant.of(self._clock)
                count += 1
                try:
                    actions, value = job.run(now)
                except Exception as error:  # one odd message or request never ends a gateway
                    self._failed(job.reply, error)
                    continue
                others += self._store(actions, now)
                if job.reply is not None:
                    replies.append((job.reply, value))
        for action in others:
            self._do(action)
        self._send(SENT_AT_ONCE + PUBLICATIONS_OF_A_MESSAGE * count)
        for reply, value in replies:
            reply.set_result(value)

    def _failed(self, reply: Future[Any] | None, error: Exception) -> None:
        if reply is not None:
            reply.set_exception(error)
        elif not isinstance(error, FleetError):
            log.exception("a message wasn't dealt with; that is a defect", exc_info=error)
        else:
            log.warning("a message wasn't dealt with: %s", error)

    def _store(self, actions: list[Action], now: Instant) -> list[Action]:
        """Do the store's part of ``actions``; returns the rest in order."""
        rest: list[Action] = []
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            if not isinstance(action, _STORE_ACTIONS):
                rest.append(action)
                continue
            coded = self.store.apply(cast(StoreAction, action))
            self._tell(action)
            if isinstance(action, act.Assemble):
                assert coded is not None
                try:
                    more = self.logic.assembled(action.key, action.device, coded, now)
                except Exception as error:
                    self._failed(None, error)
                    more = [act.DropChunks(action.key, action.device)]
                todo.extendleft(reversed(more))
        return rest

    def _tell(self, action: Action) -> None:
        for watch in self._watchers:
            watch(action)

    def _do(self, action: Action) -> None:
        match action:
            case act.Log(text, level) as line:
                log.log(level, "%s", text, extra=line.about)
            case act.RoundChanged(key):
                self._round_changed(key)
            case _:
                self._unsent.append(cast(Publication, action))

    def _send(self, limit: int) -> None:
        while self._unsent and limit > 0:
            action = self._unsent.popleft()
            limit -= self._publish(action)
            self._tell(action)

    def _publish(self, action: Publication) -> int:
        """Do it; returns the number of publications."""
        match action:
            case act.Publish():
                self._link.publish(action)
            case act.PublishTask(key, device):
                self._publish_task(key, device)
            case act.PublishChunks():
                return self._publish_chunks(action)
            case act.ClearChunks(weights, count):
                for chunk in reversed(range(count)):
                    topic = topics.blob(self.settings.fleet, weights, chunk)
                    self._link.publish(act.Publish(topic, b"", retain=True))
                return count
            case act.Subscribe(filters):
                self._link.subscribe(filters)
            case act.Unsubscribe(filters):
                self._link.unsubscribe(filters)
        return 1

    def _publish_task(self, key: RoundKey, device: str) -> None:
        found = self.logic.rounds.get(key)
        if found is None or not found.open:
            return  # it has ended meanwhile
        left = found.seconds_left(device, self._clock.monotonic())
        size = self.logic.blobs[found.spec.tasks[device].weights]
        announced = self.logic.devices.announced(device)
        task = found.spec.task(device, size, announced.keyring if announced else 0)
        fleet, gateway = self.settings.fleet, self.settings.gateway
        self._link.publish(
            act.Publish(
                topics.task(fleet, device),
                task.encode(),
                retain=True,
                expiry_seconds=max(1, math.ceil(left)),
                response_topic=topics.delta(fleet, gateway, device),
            )
        )

    def _publish_chunks(self, action: act.PublishChunks) -> int:
        if action.weights not in self.logic.blobs:
            return 0
        wanted = None if action.chunks is None else set(action.chunks)
        count = 0
        first, *others = chunks_of(self.store.blob_data(action.weights), action.chunk_bytes)
        # Who sees chunk 0 may take it that the others are there.
        for chunk, payload in (*others, first):
            if wanted is None or chunk in wanted:
                topic = topics.blob(self.settings.fleet, action.weights, chunk)
                self._link.publish(
                    act.Publish(topic, payload, True, expiry_seconds=action.expiry_seconds)
                )
                count += 1
        return count
