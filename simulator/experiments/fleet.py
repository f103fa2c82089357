"""A fleet in virtual time: devices, brokers, gateways, and the campaigns that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

from fleet.campaign import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.key_holders import KeyHolders
from fleet.store import sqlite_url
from simulator.experiments.brokers import VirtualBroker
from simulator.experiments.gateways import DirectTransport, VirtualGateway, Way
from simulator.experiments.keys import VirtualKeys
from simulator.experiments.meddling import Meddler
from simulator.experiments.processes import Process, Processes, SharedStore, WaitingClock
from simulator.experiments.window_clock import WindowClock
from simulator.virtual.device import Said
from simulator.virtual.line import LineEnd
from simulator.virtual.pool import DevicePool
from simulator.virtual.population import Population


class VirtualFleet:
    """For one owner; ends with ``close`` or its context."""

    def __init__(
        self,
        population: Population,
        pool: DevicePool,
        folder: Path,
        keys: VirtualKeys | None = None,
    ) -> None:
        """``pool`` has the population's devices; ``folder`` is for what gateways and the
        coordinator keep, which grows with each round. ``keys`` are those that the devices believe,
        where they were given any."""
        self.pool = pool
        world = population.world
        self.clock = WindowClock(pool, self._hears, population.least_line_nanoseconds)
        self._sites = [world.device(number).site for number in population.numbers]
        sites = world.config.population.sites
        self.brokers = {
            name: VirtualBroker(self.clock, partial(_down, population)) for name in sites
        }
        meddler = Meddler(population, self.clock)
        self.gateways: dict[str, VirtualGateway] = {}
        for site, of in sites.items():
            for number in range(1, of.gateways + 1):
                share = f"{number}/{of.gateways}" if of.gateways > 1 else ""
                self.gateways[f"{site}-{number}"] = VirtualGateway(
                    f"{site}-{number}",
                    population.fleet,
                    folder,
                    {"share": share},
                    self.brokers[site],
                    meddler,
                    self.clock,
                )
        self.transport = DirectTransport(self.gateways, self.clock)
        self.store = SharedStore(
            sqlite_url(folder / "coordinator.sqlite"), self.clock, survives_power_cuts=False
        )
        self.protection = keys.holders(self.clock) if keys else KeyHolders()
        self.processes = Processes(self.clock)
        self.store.on_commit = self.processes.step

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it; only ``folder`` is left."""
        self.processes.kill_all()
        for gateway in self.gateways.values():
            gateway.close()
        self.store.close()

    def run_campaign(
        self,
        config: CampaignConfig,
        manifests: Mapping[str, str],
        weights: bytes,
        identifier: str,
        on_start: Callable[[int], None] = lambda number: None,
        told: Callable[[float], None] = lambda seconds: None,
    ) -> str:
        """Run a campaign from first to last round; returns its state, the rest is in ``store``.

        ``manifests`` are the bundles' manifest.json texts, by any names. ``on_start`` is called
        with each round's number before anybody is asked, ``told`` with how far time has gone.
        """
        campaign = new_campaign(self.store, config, manifests, weights, identifier=identifier)
        self.transport.on_start, self.transport.told = on_start, told
        driver = CampaignDriver(
            self.store,
            campaign,
            self.transport,
            driver="experiment",
            clock=self.clock,
            protection=self.protection,
        )
        return driver.run()

    def start_driver(
        self, campaign: str, name: str, way: Callable[[str], Way] | None = None
    ) -> Process:
        """Begin a driver of a stored campaign; it goes on while ``processes`` let time pass.

        There may be many, of one campaign as well. ``way`` is as in `DirectTransport`.
        """

        def run(clock: WaitingClock) -> None:
            transport = DirectTransport(self.gateways, clock, way=way)
            CampaignDriver(
                self.store,
                campaign,
                transport,
                driver=name,
                clock=clock,
                protection=self.protection,
            ).run()

        return self.processes.start(name, run)

    def _hears(self, said: Said) -> None:
        self.brokers[self._sites[said.device]].hears(said)


def _down(population: Population, number: int, call: int) -> LineEnd:
    return population.line(number, "down", call)
