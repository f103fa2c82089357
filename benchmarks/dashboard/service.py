"""The service in a process of its own, which can't import the package's ``__main__``."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from fleet.dashboard import mount
from fleet.ports import free_port
from fleet.service.api import make_app
from fleet.service.operations import Operations
from fleet.store import SqlStore


def run_service(url: str, port: int) -> None:
    store = SqlStore(url)
    app = make_app(Operations(store, "bench"), version="0", requests_per_minute=1_000_000)
    mount(app)
    uvicorn.run(app, port=port, log_level="error", access_log=False)


@contextmanager
def service(url: str) -> Iterator[tuple[str, int]]:
    """A service in another process: its address and its process id."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=run_service, args=(url, port))
    process.start()
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/healthz")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        assert process.pid is not None
        yield address, process.pid
    finally:
        process.terminate()
        process.join()
