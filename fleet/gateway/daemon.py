"""The gateway daemon: MQTT and the socket around the round logic and its store.

One thread owns logic and store. It takes events in batches: all of a batch is one
transaction; after it is on disk come publications and acknowledgements (group commit).
"""

from __future__ import annotations

import fcntl
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast, get_args

from fleet.errors import BrokerError, ConfigurationError, FleetError, ProtocolError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action, StoreAction
from fleet.gateway.config import GatewaySettings
from fleet.gateway.mqtt import BrokerConnection, Token
from fleet.gateway.replies import collect_reply, hello_reply
from fleet.gateway.round_logic import RoundLogic
from fleet.gateway.rounds import RoundKey, RoundState, StartRequest
from fleet.gateway.server import SocketServer
from fleet.gateway.store import RoundStore
from fleet.protocol import topics

TICK_SECONDS = 0.2
MAX_BATCH = 256
REPLY_SECONDS = 30.0
MAX_WAIT_SECONDS = 5.0

log = logging.getLogger(__name__)

_STORE_ACTIONS = get_args(StoreAction)


@dataclass(frozen=True)
class _Job:
    """Something for the logic's thread: gives actions, and maybe a value for a waiting caller."""

    run: Callable[[], tuple[list[Action], Any]]
    reply: Future[Any] | None = None


class Gateway:
    """A running gateway; ``run`` returns when ``stop`` is called or it can't go on."""

    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.time) -> None:
        """Open store and socket; nothing is connected yet."""
        self.settings = settings
        self._clock = clock
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._failure: FleetError | None = None
        self._lock_file = _lock(settings.store)
        self.store = RoundStore(settings.store)
        self.logic = RoundLogic(settings.fleet, settings.gateway, settings.serves)
        devices, statuses = self.store.devices()
        self.logic.restore(devices, statuses, self.store.rounds(), self.store.blobs())
        self.broker = BrokerConnection(settings.broker, settings.broker.user, self)
        self.server = SocketServer(settings.socket, self._answer)

    def run(self) -> None:
        """Serve until ``stop``; raises what made it impossible to go on."""
        running = [key for key, found in self.logic.rounds.items() if found.open]
        for key in running:
            log.info("%s goes on", key)
        self.server.start()
        self.broker.start()
        log.info(
            "gateway %s of fleet %s listens on %s",
            self.settings.gateway,
            self.settings.fleet,
            self.settings.socket,
        )
        try:
            while not self._stopping.is_set():
                self._work(self._next_batch())
        finally:
            self.server.stop()
            self.broker.stop()
            self.store.close()
            self._lock_file.close()
        if self._failure:
            raise self._failure
        log.info("gateway %s stopped", self.settings.gateway)

    def stop(self) -> None:
        """End ``run`` soon; safe from any thread and from signal handlers."""
        self._stopping.set()

    # ---- called by the broker connection ---------------------------------------------

    def on_connected(self) -> None:
        """See :class:`fleet.gateway.mqtt.Listener`."""
        self._jobs.put(_Job(lambda: (self.logic.connected(self._clock()), None)))

    def on_failed(self, error: BrokerError) -> None:
        """See :class:`fleet.gateway.mqtt.Listener`."""
        self._failure = error
        self._stopping.set()

    def on_message(self, topic: str, payload: bytes, token: Token | None) -> None:
        """See :class:`fleet.gateway.mqtt.Listener`."""
        self._jobs.put(_Job(lambda: (self._message(topic, payload, token), None)))

    def _message(self, topic: str, payload: bytes, token: Token | None) -> list[Action]:
        now = self._clock()
        try:
            parts = topics.parse(topic)
        except ProtocolError as error:
            return [act.Log(str(error), warning=True), act.Acknowledge(token)]
        logic, device = self.logic, parts.device
        if parts.kind == "blob":
            return logic.chunk_seen(bytes.fromhex(parts.sha256), parts.chunk, token)
        if not self.settings.serves(device):
            return [act.Acknowledge(token)]
        match parts.kind:
            case "announce":
                return logic.announce(device, payload, now, token)
            case "status":
                return logic.status(device, payload, now, token)
            case "task":
                return logic.task_seen(device, payload, token)
            case _:
                return logic.chunk(device, payload, now, token)

    # ---- called by the socket server -------------------------------------------------

    def _answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "hello":
                return cast(dict[str, Any], self._ask(lambda: ([], self._hello())))
            case "start":
                start = StartRequest.parse(request)
                state = self._ask(lambda: (self.logic.start(start, self._clock()), start.key))
                return {"state": str(self.logic.state(state))}
            case "cancel":
                key = self.server.round_key(operation, request)
                self._ask(lambda: (self.logic.cancel(key, self._clock()), None))
                return {"state": str(self.logic.state(key))}
            case "collect":
                wait = self.server.wait_seconds(request, MAX_WAIT_SECONDS)
                key = self.server.round_key(operation, request)
                return self._collect(key, wait)
        raise self.server.unknown(operation)

    def _ask(self, run: Callable[[], tuple[list[Action], Any]]) -> Any:
        reply: Future[Any] = Future()
        self._jobs.put(_Job(run, reply))
        return reply.result(timeout=REPLY_SECONDS)

    def _hello(self) -> dict[str, Any]:
        return hello_reply(self.settings, self.logic, self.store)

    def _collect(self, key: RoundKey, wait: float) -> dict[str, Any]:
        end = time.monotonic() + wait
        with self._changed:
            while self.logic.state(key) is RoundState.RUNNING:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
        reply = self._ask(lambda: ([], collect_reply(key, self.logic, self.store)))
        return cast(dict[str, Any], reply)

    # ---- the logic's thread ----------------------------------------------------------

    def _next_batch(self) -> list[_Job]:
        batch = [_Job(lambda: (self.logic.tick(self._clock()), None))]
        try:
            batch.append(self._jobs.get(timeout=TICK_SECONDS))
            while len(batch) < MAX_BATCH:
                batch.append(self._jobs.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _work(self, batch: list[_Job]) -> None:
        after: list[Action] = []
        replies: list[tuple[Future[Any], Any]] = []
        with self.store.transaction():
            for job in batch:
                try:
                    actions, value = job.run()
                except FleetError as error:
                    if job.reply is None:
                        raise
                    job.reply.set_exception(error)
                    continue
                after += self._store(actions)
                if job.reply is not None:
                    replies.append((job.reply, value))
        for action in after:
            self._do(action)
        for reply, value in replies:
            reply.set_result(value)

    def _store(self, actions: list[Action]) -> list[Action]:
        """Do the store's part of ``actions``; returns the rest in order."""
        rest: list[Action] = []
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            if not isinstance(action, _STORE_ACTIONS):
                rest.append(action)
                continue
            coded = self.store.apply(cast(StoreAction, action))
            if isinstance(action, act.Assemble):
                assert coded is not None
                more = self.logic.assembled(action.key, action.device, coded, self._clock())
                todo.extendleft(reversed(more))
        return rest

    def _do(self, action: Action) -> None:
        match action:
            case act.Publish():
                self.broker.publish(action)
            case act.PublishChunks(weights, expiry, chunks):
                self._publish_chunks(weights, expiry, chunks)
            case act.Subscribe(filters):
                self.broker.subscribe(filters)
            case act.Unsubscribe(filters):
                self.broker.unsubscribe(filters)
            case act.Acknowledge(token):
                if isinstance(token, Token):
                    self.broker.acknowledge(token)
            case act.Log(text, warning):
                log.log(logging.WARNING if warning else logging.INFO, "%s", text)
            case act.RoundChanged():
                with self._changed:
                    self._changed.notify_all()

    def _publish_chunks(self, weights: bytes, expiry: int, chunks: Any) -> None:
        data = self.store.blob_data(weights)
        size, _ = self.logic.blobs[weights]
        for chunk in range(size.chunks) if chunks is None else chunks:
            part = data[chunk * size.chunk_bytes : (chunk + 1) * size.chunk_bytes]
            topic = topics.blob(self.settings.fleet, weights.hex(), chunk)
            self.broker.publish(act.Publish(topic, part, retain=True, expiry_seconds=expiry))


def _lock(store: Path) -> IO[bytes]:
    """Hold the store for this process; the system lets go of it whatever becomes of us."""
    path = store.with_name(store.name + ".lock")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ConfigurationError(f"store {store}: can't be opened ({error})") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigurationError(
            f"store {store} is used by another gateway process; stop that one or choose another "
            f"'store'"
        ) from None
    return file
