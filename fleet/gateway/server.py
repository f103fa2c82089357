"""The gateway's unix socket: requests in, replies out, one thread per connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet.errors import ConfigurationError, FleetError, GatewayError
from fleet.gateway import frames

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]

log = logging.getLogger(__name__)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, answer: Answer) -> None:
        self.answer = answer
        super().__init__(str(path), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client went away
            while True:
                try:
                    request = frames.receive(self.request)
                except GatewayError as error:
                    frames.send(self.request, {"ok": False, "error": str(error)})
                    return  # where the next frame begins is unknown
                if request is None:
                    return
                frames.send(self.request, self._reply(request))

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request.pop("op", None)
        try:
            return {"ok": True, **self.server.answer(str(operation), request)}
        except FleetError as error:
            return {"ok": False, "error": str(error)}
        except TimeoutError:
            return {"ok": False, "error": f"{operation}: the gateway is too busy; try again"}
        except Exception:
            log.exception("request %s failed", operation)
            return {
                "ok": False,
                "error": f"{operation}: the gateway has a defect; its log has the traceback",
            }


class SocketServer:
    """Listens on a unix socket that only the owner may use."""

    def __init__(self, path: Path, answer: Answer) -> None:
        """Take the path; ConfigurationError where somebody else listens there."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_socket():
            self._remove_stale()
        try:
            self._server = _Server(path, answer)
            path.chmod(0o600)
        except OSError as error:
            raise ConfigurationError(
                f"socket {path}: can't listen there ({error}); choose another 'socket'"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="socket", daemon=True
        )

    def _remove_stale(self) -> None:
        if not self.path.is_socket():
            raise ConfigurationError(
                f"socket {self.path}: there is a file that isn't a socket; choose another 'socket'"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.path))
            except OSError:
                self.path.unlink()  # left behind by a process that was killed
                return
        raise ConfigurationError(
            f"socket {self.path}: another gateway listens there; stop it or choose another 'socket'"
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more and remove the socket."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)
