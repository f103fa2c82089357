"""Keeps a ServerApp running: until a stored campaign has ended, or for as long as a service lives.

It submits a run, watches it, and submits another when it has failed or its SuperLink has
lost it. Everything that matters is in the store, so it may itself be killed and started
again: the new one supersedes the old one's ServerApp.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.clock import Clock, SystemClock
from fleet.coordinator.control import Control
from fleet.coordinator.pace import FlowerPace
from fleet.coordinator.superlink import AttachedSuperLink, SuperLink
from fleet.errors import FlowerError
from fleet.store import ENDED_STATES, CampaignRecord, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProgressEvent:
    """Something that onlookers want to know.

    `kind`: `run-submitted`, `run-failed`, `round-started` (data: round kind, asked, wanted),
    `round-progress` (data: accepted), `round-done` (data: the round's result),
    `campaign-ended` (data: state, reason).
    """

    kind: str
    round: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


Progress = Callable[[ProgressEvent], None]


class _Watcher:
    """Turns what is in the store into events, each once; reads only what has changed."""

    def __init__(self, store: Store, campaign: str, progress: Progress) -> None:
        self._store = store
        self._campaign = campaign
        self._progress = progress
        self._started: set[int] = set()
        self._done: set[int] = set()
        self._accepted: dict[int, int] = {}
        self.revision = 0

    def look(self) -> None:
        for one in self._store.round_summaries(self._campaign, self.revision):
            self.revision = max(self.revision, one.revision)
            if one.number in self._done:
                continue
            if one.number not in self._started:
                self._started.add(one.number)
                data = {"kind": one.kind, "asked": one.asked, "wanted": one.wanted}
                self._progress(ProgressEvent("round-started", one.number, data))
            if one.accepted != self._accepted.get(one.number, 0):
                self._accepted[one.number] = one.accepted
                self._progress(
                    ProgressEvent("round-progress", one.number, {"accepted": one.accepted})
                )
            if one.state != "running":
                self._done.add(one.number)
                whole = self._store.round(self._campaign, one.number)
                data = {**whole.result, "kind": one.kind, "state": one.state}
                self._progress(ProgressEvent("round-done", one.number, data))


MOST_DOUBLINGS = 4
"""Of how long a ServerApp may be silent, one for each in a row that brought nothing further."""


@dataclass(frozen=True)
class Patience:
    """Of whoever keeps a run going; in seconds.

    The SuperLink is asked about the run every `ask`. A run whose ServerApp hasn't touched the store
    for `silence` is replaced: Flower notices a killed ServerApp after a minute only. A SuperLink
    that has been of no use for `refusal`, or `max_runs` runs in a row that brought nothing further,
    are given up.
    """

    ask: float = 1.5
    silence: float = 30.0
    refusal: float = 300.0
    max_runs: int = 20


class RunKeeper:
    """Keeps a run of our app going on a SuperLink: submits it, watches it, submits another."""

    def __init__(
        self,
        superlink: SuperLink | AttachedSuperLink,
        control: Control,
        run_config: Mapping[str, str | int | float | bool],
        patience: Patience,
        clock: Clock,
        *,
        restart_superlink: bool,
        tell: Progress,
        what: str,
    ) -> None:
        """`what` is run, as messages call it. With `restart_superlink` one that died is started
        again; without, it is waited for (somebody else owns it)."""
        self._superlink = superlink
        self._control = control
        self._config = run_config
        self._patience = patience
        self._clock = clock
        self._restart = restart_superlink
        self._tell = tell
        self._what = what
        self._run: int | None = None
        self._runs = 0  # since there was progress
        self._last_error = ""
        self._heartbeat: object = None
        self._progress: object = None
        now = clock.monotonic()
        self._ask_at = self._answered = self._heard = now

    def look(self, heartbeat: object, progress: object) -> None:
        """Look once. Both arguments change: when the ServerApp lives, and when it gets on.

        Raises `FlowerError` where Flower is of no use any more.
        """
        now = self._clock.monotonic()
        if progress != self._progress:
            self._progress, self._runs = progress, min(self._runs, 1)
        if heartbeat != self._heartbeat:
            self._heartbeat, self._heard = heartbeat, now
        try:
            self._keep_superlink()
            # Asking costs the SuperLink more than a look into the store costs us.
            if self._run is not None and now >= self._ask_at:
                self._ask_at = now + self._patience.ask
                self._check(self._run)
            if self._run is None:
                if self._runs >= self._patience.max_runs:
                    raise _UselessError
                self._run = self._control.start_run(self._config)
                self._runs += 1
                self._answered = self._heard = self._clock.monotonic()
                self._tell(ProgressEvent("run-submitted", None, {"run": self._run}))
        except _UselessError:
            raise FlowerError(
                f"{self._what} got no further in {self._runs} runs; the last one said: "
                f"{self._last_error}; logs are {self._superlink.logs}"
            ) from None
        except FlowerError as error:
            # The SuperLink is down or coming up; the next look sees.
            logger.warning("waiting for the SuperLink: %s", error)
            if self._clock.monotonic() - self._answered > self._patience.refusal:
                raise FlowerError(
                    f"{self._what} can't go on, the SuperLink has been of no use "
                    f"for {self._patience.refusal:.0f} s: {error}; mend it and run it "
                    "again, its state is in the store"
                ) from None
            self._clock.sleep(1.0)

    def _check(self, run: int) -> None:
        error = self._run_error(run)
        self._answered = self._clock.monotonic()
        silent = self._answered - self._heard
        # On a machine that is busy a ServerApp takes long to come up: another one would take
        # longer.
        patience = self._patience.silence * 2 ** min(self._runs - 1, MOST_DOUBLINGS)
        if not error and silent > patience:
            error = f"its ServerApp has been silent for {silent:.0f} s"
            # It may hang; what it still writes is refused once superseded.
            self.stop()
        if error:
            self._last_error = error
            self._tell(ProgressEvent("run-failed", None, {"run": run, "error": error}))
            logger.warning("run %d of %s: %s", run, self._what, error)
            self._run = None

    def _run_error(self, run: int) -> str:
        """Why a run can't go on; empty while it does."""
        state = self._control.run_state(run)
        if state is None:
            return "the SuperLink has forgotten it"
        if state.ended:
            return f"ended ({state.outcome}) before its time: {state.details}"
        return ""

    def _keep_superlink(self) -> None:
        if not self._restart:
            return
        if not self._superlink.processes_run():
            logger.warning("a SuperLink process has ended; starting it again")
            self._superlink.restart()

    def stop(self) -> None:
        """End the run, if there is one and the SuperLink answers."""
        if self._run is not None:
            with contextlib.suppress(FlowerError):
                self._control.stop_run(self._run)


class _UselessError(Exception):
    """Runs end, one after the other."""


class Coordinator:
    """Runs one stored campaign over one SuperLink, which nothing else uses: what the demo is."""

    def __init__(
        self,
        store: Store,
        store_path: Path,
        superlink: SuperLink,
        *,
        sync_wait_seconds: float = FlowerPace.sync_wait,
        poll_seconds: float = 0.25,
        patience: Patience | None = None,
        restart_superlink: bool = True,
        clock: Clock | None = None,
        connect: Callable[[str], Control] = Control,
        settings: Path | None = None,
    ) -> None:
        """`store_path` is the file of `store`, as ServerApps open it.

        `sync_wait_seconds` is `FlowerPace.sync_wait`, `patience` and
        `restart_superlink` above. The store is looked at every `poll_seconds`. `connect` opens
        the SuperLink's control interface at an address. `settings` is the file of a service's
        settings whose keys tasks are signed with, and whose unmaskers unmask.
        """
        self._store = store
        self._path = store_path.resolve()
        self._superlink = superlink
        self._sync_wait = sync_wait_seconds
        self._poll = poll_seconds
        self._patience = patience or Patience()
        self._restart = restart_superlink
        self._clock = clock or SystemClock()
        self._connect = connect
        self._settings = settings

    def run(self, campaign: str, progress: Progress | None = None) -> CampaignRecord:
        """Run a campaign to its end and return it as it ended; look at `state` and `reason`.

        Raises `FlowerError` where Flower brings it no further.
        """
        tell = progress or (lambda event: None)
        watcher = _Watcher(self._store, campaign, tell)
        config: dict[str, str | int | float | bool] = {
            "mode": "campaign",
            "store": str(self._path),
            "campaign": campaign,
            "sync-wait-seconds": self._sync_wait,
        }
        if self._settings is not None:
            config["settings"] = str(self._settings.resolve())
        with self._connect(self._superlink.address) as control:
            keeper = RunKeeper(
                self._superlink,
                control,
                config,
                self._patience,
                self._clock,
                restart_superlink=self._restart,
                tell=tell,
                what=f"campaign {campaign}",
            )
            while True:
                record = self._store.campaign(campaign)
                watcher.look()
                if record.state in ENDED_STATES:
                    break
                keeper.look(record.driver_seen, watcher.revision)
                self._clock.sleep(self._poll)
        tell(
            ProgressEvent("campaign-ended", None, {"state": record.state, "reason": record.reason})
        )
        return record

    def stop(self, campaign: str) -> None:
        """Ask for the running round to be cancelled at all gateways and the campaign to end."""
        self._store.ask(campaign, "stop")
