"""What the leading service deletes, as its settings say: small batches, one after the other."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from fleet.clock import Clock
from fleet.coordinator.settings import RetentionSettings
from fleet.errors import FleetError
from fleet.store import Idempotency, Retention, SqlStore

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3600.0
"""Between looks where nothing was left to delete."""
ROWS = 1000
BLOBS = 4
"""Of a batch. Weights are large: what is deleted is written to a journal first."""
DAY = 86_400.0
REMEMBERED_SECONDS = 7 * DAY
"""Idempotency keys."""
KINDS = ("reports", "events", "weights")


class Cleaner:
    """Deletes what is older than a fleet's settings keep.

    Attributes: `deleted`, how many rows of each kind since it began.
    """

    def __init__(self, store: SqlStore, settings: RetentionSettings, clock: Clock) -> None:
        """Nothing is deleted before the first `step`."""
        self._clock = clock
        self._idempotency = Idempotency(store)
        self.deleted: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        retention = Retention(store)
        jobs = (
            ("reports", settings.reports_days, retention.delete_reports, ROWS),
            ("events", settings.events_days, retention.delete_events, ROWS),
            ("weights", settings.weights_days, retention.delete_weights, BLOBS),
        )
        self._jobs: dict[str, Callable[[], bool]] = {
            kind: self._job(kind, days * DAY, delete, limit)
            for kind, days, delete, limit in jobs
            if days is not None
        }
        self._jobs["idempotency"] = self._forget_keys
        self._due = dict.fromkeys(self._jobs, float("-inf"))

    def step(self) -> None:
        """Delete one batch of what is due, if anything is. A store that is away is tried again."""
        now = self._clock.monotonic()
        kind = min(self._due, key=lambda one: self._due[one])
        if now < self._due[kind]:
            return
        try:
            is_more = self._jobs[kind]()
        except FleetError as error:
            logger.error("old %s stay for now: %s", kind, error)
            is_more = False
        # The others come before the next batch of this one.
        self._due[kind] = now if is_more else now + LOOK_SECONDS

    def _job(
        self, kind: str, seconds: float, delete: Callable[[float, int], int], limit: int
    ) -> Callable[[], bool]:
        def run() -> bool:
            count = delete(self._clock.wall() - seconds, limit)
            self.deleted[kind] += count
            return count > 0

        return run

    def _forget_keys(self) -> bool:
        self._idempotency.forget_before(self._clock.wall() - REMEMBERED_SECONDS)
        return False
