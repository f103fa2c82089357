"""The service: an API in this process, and the fleet's campaigns for as long as this one leads.

Several may share a store. One leads, and has a SuperLink and a ServerApp; the others answer the API
and wait until the leader has been silent for long enough.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi import FastAPI

from fleet.clock import Clock, SystemClock
from fleet.coordinator.control import Control
from fleet.coordinator.fleet_run import DRIVER
from fleet.coordinator.gateway_keys import GatewayKeys, read_keys
from fleet.coordinator.key_holders import task_keys
from fleet.coordinator.service import Patience, ProgressEvent, RunKeeper
from fleet.coordinator.settings import CoordinatorSettings
from fleet.coordinator.superlink import superlink_of
from fleet.coordinator.webhooks import Deliveries
from fleet.errors import FleetError, StoreError
from fleet.security.listening import ListenSettings
from fleet.security.serving import Server
from fleet.service.api import make_app
from fleet.service.bootstrap import bootstrap
from fleet.service.operations import Operations
from fleet.service.retention import Cleaner
from fleet.store import SqlStore, SupersededError, Term

logger = logging.getLogger(__name__)

SERVICE = "service"
BEAT_SECONDS = 2.0
SILENCE_SECONDS = 10.0
"""After which a leader is taken for dead."""
LOOK_SECONDS = 0.5
KEYS_LOOK_SECONDS = 5.0
STARTING = "the ServerApp hasn't come up yet"


class Leader:
    """Leads when nobody else does, and keeps what a leader needs running."""

    def __init__(
        self, settings_path: Path, settings: CoordinatorSettings, store: SqlStore, clock: Clock
    ) -> None:
        """Nothing is taken or started yet."""
        self._path = settings_path
        self._settings = settings
        self._store = store
        self._clock = clock
        self._term = Term(store, SERVICE, f"{socket.gethostname()}/{os.getpid()}")
        self._candidate = self._term.waiting(clock, SILENCE_SECONDS)
        self._problem = STARTING
        self._superseded: SupersededError | None = None
        self.cleaner = Cleaner(store, settings.retention, clock)
        self.is_leading = False

    def problems(self) -> list[str]:
        """What keeps the service from its work; a service that waits for its turn has none."""
        try:
            self._store.require_known_tables()
            if not self.is_leading and self._term.seen()[2] not in ("", self._term.holder):
                return []
        except StoreError as error:
            return [str(error)]
        return [self._problem] if self._problem else []

    def run(self, is_stopping: threading.Event) -> None:
        """Until it is to stop."""
        while not is_stopping.is_set():
            try:
                if self._candidate.try_to_take():
                    logger.info("leads from now on, as number %d", self._term.number)
                    self.is_leading, self._problem = True, STARTING
                    with self._beating():
                        self._lead(is_stopping)
            except SupersededError as error:
                logger.warning("leads no more: %s", error)
            except FleetError as error:
                self._problem = str(error)
                logger.error("%s", error)
            except Exception:
                logger.exception("the leader stumbles over a defect, and begins again")
            self.is_leading = False
            is_stopping.wait(BEAT_SECONDS)
        with contextlib.suppress(StoreError):
            self._term.give_up()

    def _lead(self, is_stopping: threading.Event) -> None:
        settings = self._settings
        folder = settings.superlink.gateway_keys
        # What is wrong with keys is said before anything is started.
        task_keys(settings)
        if folder is not None:
            read_keys(folder)
        superlink = superlink_of(settings)
        owns = settings.superlink.port is not None
        superlink.start()
        stopped = False
        try:
            self._require_term()
            with Control(superlink.address, superlink.ca) as control:
                keeper = RunKeeper(
                    superlink,
                    control,
                    {"mode": "fleet", "settings": str(self._path.resolve())},
                    Patience(ask=5.0, max_runs=1_000_000_000, refusal=float("inf")),
                    self._clock,
                    restart_superlink=owns,
                    tell=self._note,
                    what="the fleet",
                )
                keys = None if folder is None else GatewayKeys(folder, control)
                with self._delivering():
                    self._keep(keeper, is_stopping, keys)
                stopped = is_stopping.is_set()
                if stopped:
                    keeper.stop()
        finally:
            # Whoever leads next finds it running and takes it over.
            if stopped and owns:
                superlink.stop()

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """The leader is heard meanwhile, whatever it does: a SuperLink may take a minute to start,
        and others take the term from one that is silent for seconds."""
        is_over = threading.Event()
        self._superseded = None

        def beat() -> None:
            while True:
                try:
                    self._term.beat()
                except SupersededError as error:
                    self._superseded = error
                    return
                except FleetError as error:
                    logger.error("the leader isn't heard: %s", error)
                except Exception:
                    logger.exception("the leader's beat meets a defect, and goes on")
                if is_over.wait(BEAT_SECONDS):
                    return

        with _beside(beat, "beat", is_over):
            yield

    def _require_term(self) -> None:
        """Raises `SupersededError` once somebody else leads."""
        if self._superseded is not None:
            raise self._superseded

    @contextlib.contextmanager
    def _delivering(self) -> Iterator[None]:
        """Events go to webhooks meanwhile. Receivers that hang take seconds, and a leader that is
        silent for seconds isn't one any more: so they have a thread of their own."""
        is_over = threading.Event()

        def deliver() -> None:
            deliveries = Deliveries(self._store, self._clock)
            while not is_over.wait(LOOK_SECONDS):
                try:
                    deliveries.step()
                except FleetError as error:
                    logger.error("webhooks have to wait: %s", error)
                except Exception:
                    logger.exception("deliveries meet a defect, and go on")

        with _beside(deliver, "webhooks", is_over):
            yield

    def _note(self, event: ProgressEvent) -> None:
        if event.kind == "run-failed":
            self._problem = str(event.data["error"])

    def _keep(
        self, keeper: RunKeeper, is_stopping: threading.Event, keys: GatewayKeys | None = None
    ) -> None:
        driver = Term(self._store, DRIVER, "")
        looked_at_keys = float("-inf")
        last = driver.seen()
        while not is_stopping.is_set():
            self._require_term()
            now = self._clock.monotonic()
            seen = driver.seen()
            if seen != last:
                last, self._problem = seen, ""
            keeper.look(seen, seen)
            if keys is not None and now - looked_at_keys >= KEYS_LOOK_SECONDS:
                looked_at_keys = now
                keys.look()
            self.cleaner.step()
            is_stopping.wait(LOOK_SECONDS)


@contextlib.contextmanager
def _beside(work: Callable[[], None], name: str, is_over: threading.Event) -> Iterator[None]:
    """Work in a thread of its own meanwhile, which ends when it is over."""
    thread = threading.Thread(target=work, name=name)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def serve(
    path: Path,
    version: str,
    ready: Callable[[str], None] = lambda url: None,
    mount: Callable[[FastAPI], None] = lambda app: None,
) -> None:
    """Run a service until SIGTERM or SIGINT. `ready` is told the API's address when it answers;
    `mount` adds to the API what else is served on its port."""
    settings = CoordinatorSettings.read(path)
    settings.work.mkdir(parents=True, exist_ok=True)
    store = SqlStore(settings.store_url())
    bootstrap(store, settings.bootstrap)
    clock = SystemClock()
    leader = Leader(path, settings, store, clock)
    app = make_app(
        Operations(store, settings.fleet, settings.shown()),
        version=version,
        requests_per_minute=settings.api.requests_per_minute,
        is_leader=lambda: leader.is_leading,
        problems=leader.problems,
        deleted=lambda: leader.cleaner.deleted,
        folders=settings.folders(),
    )
    mount(app)
    is_stopping: threading.Event = app.state.stopping
    server = _Server(app, settings.api, lambda: ready(settings.api.url), is_stopping)
    # With the usual handlers the server's end would be that of this process, before the leader has
    # stopped what it runs.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_stopping.set())
    thread = threading.Thread(target=leader.run, args=(is_stopping,), name="leader")
    thread.start()
    try:
        server.run()
    finally:
        is_stopping.set()
        thread.join()
        store.close()


class _Server(Server):
    """Tells streams to end when it stops."""

    def __init__(
        self,
        app: FastAPI,
        listen: ListenSettings,
        ready: Callable[[], None],
        is_stopping: threading.Event,
    ) -> None:
        super().__init__(app, listen, ready)
        self._is_stopping = is_stopping

    def handle_exit(self, sig: int, frame: object) -> None:
        self._is_stopping.set()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]
