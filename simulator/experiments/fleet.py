"""A fleet in virtual time: devices, brokers, gateways, and the campaigns that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fleet.campaign import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.store import SqlStore
from simulator.experiments.brokers import VirtualBroker
from simulator.experiments.gateways import DirectTransport, VirtualGateway
from simulator.experiments.window_clock import WindowClock
from simulator.virtual.device import Said
from simulator.virtual.line import LineDirection, LineEnd
from simulator.virtual.pool import DevicePool

LEAST_LATENCY_SECONDS = 0.001


@dataclass(frozen=True)
class Place:
    """Where a device is."""

    site: str
    down: LineDirection
    """Its line from the broker."""


@dataclass(frozen=True)
class SiteGateways:
    """A site with one broker."""

    name: str
    gateways: int = 1
    """They share its devices among them."""


class VirtualFleet:
    """For one owner; ends with ``close`` or its context."""

    def __init__(
        self,
        name: str,
        pool: DevicePool,
        places: Sequence[Place],
        sites: Sequence[SiteGateways],
        folder: Path,
        seed: int,
        window_seconds: float,
    ) -> None:
        """``places`` are by the pool's numbers; ``window_seconds`` as `WindowClock` wants it.

        ``folder`` is for what gateways keep.
        """
        self.pool = pool
        self._places = places
        self.clock = WindowClock(pool, window_seconds, self._hears)
        lines = [LineEnd(place.down, (seed, 1, number)) for number, place in enumerate(places)]
        self.brokers = {one.name: VirtualBroker(self.clock, lines.__getitem__) for one in sites}
        self.gateways: dict[str, VirtualGateway] = {}
        for site in sites:
            for number in range(1, site.gateways + 1):
                gateway = f"{site.name}-{number}"
                share = f"{number}/{site.gateways}" if site.gateways > 1 else ""
                self.gateways[gateway] = VirtualGateway(
                    gateway, name, folder, {"share": share}, self.brokers[site.name], self.clock
                )
        self.transport = DirectTransport(self.gateways, self.clock)
        self.store = SqlStore(clock=self.clock)

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it; only ``folder`` is left."""
        for gateway in self.gateways.values():
            gateway.close()
        self.store.close()
        self.pool.close()

    def run_campaign(
        self,
        config: CampaignConfig,
        manifests: Mapping[str, str],
        weights: bytes,
        identifier: str,
        told: Callable[[float], None] = lambda seconds: None,
    ) -> str:
        """Run a campaign from first to last round; returns its state, the rest is in ``store``.

        ``manifests`` are the bundles' manifest.json texts, by any names. ``told`` hears how far
        time has gone.
        """
        campaign = new_campaign(self.store, config, manifests, weights, identifier=identifier)
        self.transport.told = told
        driver = CampaignDriver(
            self.store, campaign, self.transport, driver="experiment", clock=self.clock
        )
        return driver.run()

    def _hears(self, said: Said) -> None:
        self.brokers[self._places[said.device].site].hears(said)
