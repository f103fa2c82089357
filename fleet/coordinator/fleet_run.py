"""All campaigns of a store, over one transport: what the ServerApp of a service does.

It is disposable as a driver is: another one takes the term of `driver`, and this one ends at its
next beat; whatever it still writes meanwhile is refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from fleet.clock import Clock, SystemClock
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.hub import Hub
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.pace import HELLO_SECONDS, Pace
from fleet.coordinator.transport import Transport
from fleet.errors import FleetError
from fleet.store import (
    ENDED_STATES,
    Events,
    Registry,
    SqlStore,
    SupersededError,
    Term,
)
from fleet.tracing import Traces

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
LOOK_SECONDS = 1.0
DRIVER = "driver"


class FleetRun:
    """Drives what there is to drive until somebody else does."""

    def __init__(
        self,
        store: SqlStore,
        transport: Transport,
        holder: str,
        *,
        hello_seconds: float = HELLO_SECONDS,
        clock: Clock | None = None,
        traces: Traces | None = None,
        protection: KeyHolders | None = None,
    ) -> None:
        """Nothing is sent, and nobody is superseded, before `run`."""
        self._protection = protection
        self._store = store
        self._clock = clock or SystemClock()
        self._traces = traces
        self._registry = Registry(store)
        self._hub = Hub(transport, store, self._clock, hello_seconds)
        self._term = Term(store, DRIVER, holder)
        self._threads: dict[str, threading.Thread] = {}
        self._failed: dict[str, float] = {}

    def run(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Until another has the term, or `go_on` says no."""
        number = self._term.take()
        logger.info("drives all campaigns, as number %d", number)
        beat = looked = float("-inf")
        while go_on():
            now = self._clock.monotonic()
            try:
                if now - beat >= BEAT_SECONDS:
                    beat = now
                    self._term.beat()
                if now - looked >= LOOK_SECONDS:
                    looked = now
                    self._begin_campaigns(number)
                self._hub.step()
            except SupersededError as error:
                logger.warning("this run ends: %s", error)
                return
            except FleetError as error:
                # A database that is away for a while, a full disk: nothing is lost, nothing goes
                # on.
                logger.error("%s", error)
                self._clock.sleep(BEAT_SECONDS)

    def _begin_campaigns(self, number: int) -> None:
        for campaign in list(self._threads):
            if not self._threads[campaign].is_alive():
                del self._threads[campaign]
                self._hub.leave(campaign)
        now = self._clock.monotonic()
        for record in self._store.campaigns_under_way():
            if record.id in self._threads or now < self._failed.get(record.id, 0.0):
                continue
            thread = threading.Thread(
                target=self._drive,
                args=(record.id, f"{DRIVER}-{number}"),
                name=f"campaign {record.id}",
                daemon=True,
            )
            self._threads[record.id] = thread
            thread.start()

    def _drive(self, campaign: str, driver: str) -> None:
        channel, about = self._hub.channel(campaign), {"campaign": campaign}
        try:
            state = CampaignDriver(
                self._store,
                campaign,
                channel,
                Pace(hello=10.0),
                driver,
                self._clock,
                self._registry,
                self._traces,
                self._protection,
            ).run()
            if state in ENDED_STATES:
                record = self._store.campaign(campaign)
                data = {"state": state, "reason": record.reason, "made": record.made}
                Events(self._store).add("campaign-ended", campaign, data)
        except SupersededError:
            logger.info("campaign %s is driven by another", campaign, extra=about)
        except FleetError as error:
            logger.error("campaign %s is begun again: %s", campaign, error, extra=about)
            self._failed[campaign] = self._clock.monotonic() + BEAT_SECONDS
        except Exception:
            logger.exception(
                "campaign %s stops with a defect; it is begun again", campaign, extra=about
            )
            self._failed[campaign] = self._clock.monotonic() + 10 * BEAT_SECONDS
