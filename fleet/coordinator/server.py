"""What the ServerApp runs."""

from __future__ import annotations

import contextlib
import logging
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.fleet_run import FleetRun
from fleet.coordinator.flower_adapter import GridTransport
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.pace import FlowerPace
from fleet.coordinator.settings import CoordinatorSettings
from fleet.errors import ConfigurationError
from fleet.store import SqlStore, sqlite_url
from fleet.tracing import Traces, TracingSettings, open_traces


def _required(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigurationError(
            f"the run's configuration has no {key}; submit the app with --run-config '{key}=\"…\"'"
        )
    return value


def run_server(grid: Grid, config: Mapping[str, Any]) -> None:
    """Run what `config` (the app's run configuration) asks for; returns when it has ended.

    Raises `ConfigurationError` where it lacks what its mode needs.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    mode = config.get("mode", "campaign")
    if mode == "fleet":
        _run_fleet(grid, Path(_required(config, "settings")))
        return
    wait = float(config.get("sync-wait-seconds", 0.0))
    pace = FlowerPace(sync_wait=wait) if wait > 0 else FlowerPace()
    path = Path(_required(config, "store"))
    if not path.exists():
        raise ConfigurationError(f"the campaign store {path} does not exist on this machine")
    store = SqlStore(sqlite_url(path))
    campaign = _required(config, "campaign")
    settings = str(config.get("settings", ""))
    try:
        holders = KeyHolders.of(CoordinatorSettings.read(Path(settings))) if settings else None
        if mode == "campaign":
            with _traces(None) as traces:
                CampaignDriver(
                    store,
                    campaign,
                    GridTransport(grid, pace),
                    traces=traces,
                    protection=holders,
                ).run()
        elif mode == "strategy":
            from fleet.coordinator.strategy import run_strategy

            rounds = int(config.get("num-server-rounds", 3))
            run_strategy(grid, store, campaign, rounds, holders)
        else:
            raise ConfigurationError(
                f'mode {mode!r} is unknown; use "fleet", "campaign" or "strategy"'
            )
    finally:
        store.close()


def _run_fleet(grid: Grid, path: Path) -> None:
    """All campaigns of the service whose settings are in this file."""
    settings = CoordinatorSettings.read(path)
    store = SqlStore(settings.store_url())
    pace = FlowerPace(
        sync_wait=settings.pace.sync_wait_seconds,
        expecting_wait=settings.pace.expecting_wait_seconds,
    )
    try:
        with _traces(settings.tracing) as traces:
            FleetRun(
                store,
                GridTransport(grid, pace),
                f"{socket.gethostname()}/{uuid.uuid4().hex[:8]}",
                hello_seconds=settings.pace.hello_seconds,
                traces=traces,
                protection=KeyHolders.of(settings),
            ).run()
    finally:
        store.close()


@contextlib.contextmanager
def _traces(settings: TracingSettings | None) -> Iterator[Traces | None]:
    traces = open_traces("tinyfleet-coordinator", settings)
    try:
        yield traces
    finally:
        if traces is not None:
            traces.close()
