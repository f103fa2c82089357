"""A service on a port of this machine, over a store that has a story."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from fleet.dashboard import mount
from fleet.ports import free_port
from fleet.service.api import make_app
from fleet.service.operations import Operations
from fleet.store import ROLES, SqlStore, Tokens, sqlite_url
from tests.fleet.dashboard import story
from tests.patience import wait_until

DAY = 86_400.0
FLEET = "valley-farms"
PEOPLE = dict(zip(ROLES, ("vera", "ole", "eve", "ada"), strict=True))


@dataclasses.dataclass(frozen=True)
class Told:
    """A database file with a story in it, and a token for each role."""

    path: Path
    story: story.Story
    tokens: dict[str, str]

    def copied(self, folder: Path) -> Told:
        """The same in a file of its own."""
        path = folder / "store.sqlite"
        shutil.copyfile(self.path, path)
        operations = Operations(SqlStore(sqlite_url(path)), FLEET)
        return Told(path, dataclasses.replace(self.story, operations=operations), self.tokens)


def told(path: Path, tell: Callable[[Operations], story.Story]) -> Told:
    """Tell a story into a new file, which is closed again: it may be copied."""
    store = SqlStore(sqlite_url(path))
    made = tell(Operations(store, FLEET))
    tokens = {role: Tokens(store).issue(PEOPLE[role], role, DAY)[1] for role in ROLES}
    store.close()
    return Told(path, made, tokens)


class Service:
    """What answers at `url`; it may be stopped and come back there with another version."""

    def __init__(self, what: Told) -> None:
        """Nothing listens yet."""
        self.told = what
        self.story = what.story
        self.store = what.story.operations.store
        self._port = free_port()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._app: FastAPI | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self, version: str = "1.2.3") -> None:
        """Returns once it answers."""
        app = make_app(self.story.operations, version=version, requests_per_minute=1_000_000)
        mount(app)
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=self._port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, name="service")
        thread.start()
        wait_until(lambda: server.started or not thread.is_alive(), "the service to answer")
        assert server.started
        self._app, self._server, self._thread = app, server, thread

    def stop(self) -> None:
        """Returns once nothing listens any more."""
        if self._server is None or self._thread is None or self._app is None:
            return
        self._app.state.stopping.set()
        self._server.should_exit = True
        self._thread.join()
        self._server = None

    def close(self) -> None:
        """Stop, and close the store."""
        self.stop()
        self.store.close()
