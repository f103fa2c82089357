"""Serves an app where `ListenSettings` say."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from fleet.security.listening import ListenSettings


class Server(uvicorn.Server):
    """Logs nothing by itself; stops within seconds of SIGTERM or SIGINT.

    When it has stopped, uvicorn raises the signal once more: who calls `run` handles both.
    """

    def __init__(self, app: FastAPI, listen: ListenSettings, ready: Callable[[], None]) -> None:
        """``ready`` is called when it answers."""
        super().__init__(
            uvicorn.Config(
                app,
                host=listen.host,
                port=listen.port,
                ssl_certfile=listen.certificate,
                ssl_keyfile=listen.key,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=3,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._ready()
