"""The coordinator: keeps a ServerApp running until a stored campaign has ended.

It submits a run, watches it, and submits another when it has failed or its SuperLink has
lost it. Everything that matters is in the store, so it may itself be killed and started
again: the new one supersedes the old one's ServerApp.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.clock import Clock, SystemClock
from fleet.coordinator.control import Control
from fleet.coordinator.superlink import SuperLink
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


class Coordinator:
    """Runs stored campaigns over one SuperLink."""

    def __init__(
        self,
        store: Store,
        store_path: Path,
        superlink: SuperLink,
        *,
        sync_wait_seconds: float = 10.0,
        spare_syncs: bool = True,
        poll_seconds: float = 0.25,
        ask_seconds: float = 1.5,
        silence_seconds: float = 30.0,
        refusal_seconds: float = 300.0,
        restart_superlink: bool = True,
        max_runs: int = 20,
        clock: Clock | None = None,
        connect: Callable[[str], Control] = Control,
    ) -> None:
        """`store_path` is the file of `store`, as ServerApps open it.

        `sync_wait_seconds` and `spare_syncs` are explained in `flower_adapter`.
        With `restart_superlink` a SuperLink that died is started again; without, it is
        waited for (somebody else owns it). The store is looked at every `poll_seconds`, the
        SuperLink is asked about the run every `ask_seconds`. A run whose ServerApp hasn't
        touched the store for `silence_seconds` is replaced: Flower notices a killed ServerApp
        after a minute only. `run` gives up after `max_runs` runs in a row that brought the campaign
        no further, or when the SuperLink has been of no use for `refusal_seconds`. `connect` opens
        the SuperLink's control interface at an address.
        """
        self._store = store
        self._path = store_path.resolve()
        self._superlink = superlink
        self._sync_wait = sync_wait_seconds
        self._spare_syncs = spare_syncs
        self._poll = poll_seconds
        self._ask = ask_seconds
        self._silence = silence_seconds
        self._refusal = refusal_seconds
        self._restart = restart_superlink
        self._max_runs = max_runs
        self._clock = clock or SystemClock()
        self._connect = connect

    def run(self, campaign: str, progress: Progress | None = None) -> CampaignRecord:
        """Run a campaign to its end and return it as it ended; look at `state` and `reason`.

        Raises `FlowerError` where Flower brings it no further.
        """
        tell = progress or (lambda event: None)
        clock = self._clock
        watcher = _Watcher(self._store, campaign, tell)
        runs = 0  # since the campaign got on
        known = -1
        run: int | None = None
        last_error = ""
        ask_at = answered = heard = clock.monotonic()
        seen = 0.0
        with self._connect(self._superlink.address) as control:
            while True:
                record = self._store.campaign(campaign)
                watcher.look()
                if record.state in ENDED_STATES:
                    break
                if watcher.revision != known:
                    known, runs = watcher.revision, min(runs, 1)
                if record.driver_seen != seen:
                    seen, heard = record.driver_seen, clock.monotonic()
                try:
                    self._keep_superlink()
                    # Asking costs the SuperLink more than a look into the store costs us.
                    if run is not None and clock.monotonic() >= ask_at:
                        ask_at = clock.monotonic() + self._ask
                        error = self._run_error(control, run)
                        answered = clock.monotonic()
                        silent = clock.monotonic() - heard
                        if not error and silent > self._silence:
                            error = f"its ServerApp has been silent for {silent:.0f} s"
                            # It may hang; what it still writes is refused once superseded.
                            with contextlib.suppress(FlowerError):
                                control.stop_run(run)
                        if error:
                            last_error = error
                            tell(ProgressEvent("run-failed", None, {"run": run, "error": error}))
                            logger.warning("run %d of campaign %s: %s", run, campaign, error)
                            run = None
                    if run is None:
                        if runs >= self._max_runs:
                            break
                        run = self._submit(control, campaign)
                        runs += 1
                        answered = heard = clock.monotonic()
                        tell(ProgressEvent("run-submitted", None, {"run": run}))
                except FlowerError as error:
                    # The SuperLink is down or coming up; the next look sees.
                    logger.warning("waiting for the SuperLink: %s", error)
                    if clock.monotonic() - answered > self._refusal:
                        raise FlowerError(
                            f"campaign {campaign} can't go on, the SuperLink has been of no use "
                            f"for {self._refusal:.0f} s: {error}; mend it and run the campaign "
                            "again, its state is in the store"
                        ) from None
                    clock.sleep(1.0)
                clock.sleep(self._poll)
        if record.state not in ENDED_STATES:
            raise FlowerError(
                f"campaign {campaign} got no further in {runs} runs; the last one said: "
                f"{last_error}; logs are in {self._superlink.link.log_file.parent}"
            )
        tell(
            ProgressEvent("campaign-ended", None, {"state": record.state, "reason": record.reason})
        )
        return record

    def stop(self, campaign: str) -> None:
        """Ask for the running round to be cancelled at all gateways and the campaign to end."""
        self._store.ask(campaign, "stop")

    def _submit(self, control: Control, campaign: str) -> int:
        return control.start_run(
            {
                "mode": "campaign",
                "store": str(self._path),
                "campaign": campaign,
                "sync-wait-seconds": self._sync_wait,
                "spare-syncs": self._spare_syncs,
            }
        )

    def _run_error(self, control: Control, run: int) -> str:
        """Why a run can't go on; empty while it does."""
        state = control.run_state(run)
        if state is None:
            return "the SuperLink has forgotten it"
        if state.ended:
            return f"ended ({state.outcome}) before the campaign did: {state.details}"
        return ""

    def _keep_superlink(self) -> None:
        if not self._restart:
            return
        if not (self._superlink.link.alive() and self._superlink.superexec.alive()):
            logger.warning("a SuperLink process has ended; starting it again")
            self._superlink.restart()
