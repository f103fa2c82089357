"""The gateway daemon: threads for MQTT and the socket around the core.

One thread owns logic and store and takes events in batches (:mod:`fleet.gateway.core`). A batch
that is full keeps the others waiting, the broker in the end: memory stays bounded.
"""

from __future__ import annotations

import fcntl
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fleet.clock import Clock, SystemClock
from fleet.errors import BrokerError, ConfigurationError, FleetError
from fleet.gateway.access import AccessBook
from fleet.gateway.changes import EPOCH_BITS
from fleet.gateway.config import BrokerSettings, GatewaySettings, GatewayTracing
from fleet.gateway.core import Core, Job
from fleet.gateway.link import Link, Listener, Message
from fleet.gateway.mqtt5_link import Mqtt5Link
from fleet.gateway.replies import read_request
from fleet.gateway.rounds import RoundKey
from fleet.gateway.server import SocketServer
from fleet.gateway.store import RoundStore
from fleet.tracing import open_traces

if TYPE_CHECKING:
    from fleet.gateway.metrics import GatewayMetrics
    from fleet.gateway.traces import GatewayTraces

TICK_SECONDS = 0.2
MAX_BATCH = 256
# Of what the link reads at once, up to 256 KiB.
MAX_WAITING = 16
REPLY_SECONDS = 30.0

log = logging.getLogger(__name__)

MakeLink = Callable[[BrokerSettings, Listener], Link]


class Gateway:
    """A running gateway; ``run`` returns when ``stop`` is called or it can't go on."""

    def __init__(
        self,
        settings: GatewaySettings,
        clock: Clock | None = None,
        make_link: MakeLink = Mqtt5Link,
    ) -> None:
        """Open store and socket; nothing is connected yet."""
        self.settings = settings
        self._clock = clock or SystemClock()
        self._jobs: queue.Queue[tuple[Job, ...]] = queue.Queue(MAX_WAITING)
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._failure: FleetError | None = None
        self._lock_file = _lock(settings.store)
        self.access = _access_book(settings)
        self._metrics = _metrics(settings, self._clock)
        self._traces = _traces(settings, self._clock)
        self.link = make_link(settings.broker, self)
        self.core = Core(
            settings,
            RoundStore(settings.store),
            self.link,
            self._clock,
            epoch=1 + secrets.randbelow((1 << EPOCH_BITS) - 1),
            round_changed=self._round_changed,
            watchers=[one.watch for one in (self._metrics, self._traces) if one is not None],
        )
        if self._traces is not None:
            now, wall = self._clock.monotonic(), self._clock.wall()
            self._traces.resume(self.core.logic.rounds.values(), now, wall)
        self.server = SocketServer(settings.socket, self._answer)

    def run(self) -> None:
        """Serve until ``stop``; raises what made it impossible to go on."""
        for key, found in self.core.logic.rounds.items():
            if found.open:
                log.info("%s goes on", key, extra=key.about)
        self._keep_access()
        try:
            if self._metrics is not None:
                self._metrics.serve(self.core, self.link, self._jobs.qsize)
            self.server.start()
            self.link.start()
            log.info(
                "gateway %s of fleet %s listens on %s",
                self.settings.gateway,
                self.settings.fleet,
                self.settings.socket,
            )
            while not self._stopping.is_set():
                self.core.work(self._next_batch())
                if self._traces is not None:
                    self._traces.step()
        finally:
            self._stopping.set()
            self.server.stop()
            self.link.stop()
            if self._metrics is not None:
                self._metrics.stop()
            if self._traces is not None:
                self._traces.close()
            self.core.store.close()
            self._lock_file.close()
        if self._failure:
            raise self._failure
        log.info("gateway %s stopped", self.settings.gateway)

    def _keep_access(self) -> None:
        if self.access is None:
            return
        try:
            self.access.keep()
        except FleetError as error:
            # Rounds go on with the users that there are; the coordinator's next page tries again.
            log.error("who may log in at the broker isn't kept: %s", error)

    def stop(self) -> None:
        """End ``run`` soon; safe from any thread and from signal handlers."""
        self._stopping.set()

    # ---- called by the link ----------------------------------------------------------

    def on_connected(self) -> None:
        """See :class:`fleet.gateway.link.Listener`."""
        self._put(self.core.connected())
        if self._metrics is not None:
            self._metrics.connected(self.link)

    def on_messages(self, messages: Sequence[Message]) -> None:
        """See :class:`fleet.gateway.link.Listener`."""
        if self._metrics is not None:
            messages = self._metrics.without_brokers_own(messages)
        self._put(*(self.core.arrived(*message) for message in messages))

    def on_failed(self, error: BrokerError) -> None:
        """See :class:`fleet.gateway.link.Listener`."""
        self._failure = error
        self._stopping.set()

    def _put(self, *jobs: Job) -> None:
        while not self._stopping.is_set():
            try:
                self._jobs.put(jobs, timeout=TICK_SECONDS)
            except queue.Full:
                continue
            return

    # ---- called by the socket server -------------------------------------------------

    def _answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if self._metrics is not None:
            self._metrics.asked()
        traces, begin = self._traces, self._clock.wall()
        tell = None if traces is None else traces.told
        question = read_request(self.core, operation, request, self.access, tell)
        if question.wait_seconds:
            self._wait_until(question.is_due, question.wait_seconds)
        reply: Future[Any] = Future()
        self._put(Job(question.work, reply))
        answer = question.answer(reply.result(timeout=REPLY_SECONDS))
        if traces is not None and "sums" in answer:
            key = RoundKey(bytes.fromhex(request["campaign"]), request["round"])
            traces.summed(key, request.get("part"), begin)
        return answer

    def _round_changed(self, key: RoundKey) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait_until(self, is_due: Callable[[], bool], seconds: float) -> None:
        end = self._clock.monotonic() + seconds
        with self._changed:
            while not is_due():
                left = end - self._clock.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break

    # ---- the logic's thread ----------------------------------------------------------

    def _next_batch(self) -> list[Job]:
        batch: list[Job] = []
        try:
            batch += self._jobs.get(timeout=0.001 if self.core.unsent else TICK_SECONDS)
            while len(batch) < MAX_BATCH:
                batch += self._jobs.get_nowait()
        except queue.Empty:
            pass
        return batch


def _metrics(settings: GatewaySettings, clock: Clock) -> GatewayMetrics | None:
    """None where nobody asks for figures; then nothing of them is loaded either."""
    if settings.metrics is None:
        return None
    from fleet.gateway.metrics import GatewayMetrics

    return GatewayMetrics(settings, clock)


def _traces(settings: GatewaySettings, clock: Clock) -> GatewayTraces | None:
    """None where nobody asks for spans."""
    traces = open_traces("tinyfleet-gateway", settings.tracing)
    if traces is None:
        return None
    from fleet.gateway.traces import GatewayTraces

    devices = (settings.tracing or GatewayTracing()).devices
    return GatewayTraces(traces, settings.gateway, devices, clock)


def _access_book(settings: GatewaySettings) -> AccessBook | None:
    """The book beside the store: what befalls the broker's folder doesn't befall it."""
    folder, store = settings.broker.folder, settings.store
    return AccessBook(folder, store.with_name(store.name + ".access.json")) if folder else None


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
