"""The simulator is honest: a fleet that is live learns what the same fleet in virtual time does.

Live are Mosquitto, the gateway's process and the devices' own C going by the computer's clock; the
coordinator's driver asks the gateway over its socket, as a ClientApp does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.demo.site import FLEET, GatewayProcess
from fleet.gateway.broker import Broker, BrokerConfig
from fleet.gateway.client import GatewayClient
from fleet.ports import free_port
from fleet.store import SqlStore
from simulator.fleet.fleet import Fleet
from simulator.virtual.pool import LocalPool
from simulator.virtual.population import Population
from tests.end_to_end.socket_transport import SocketTransport
from tests.simulator.virtual.small_fleet import CAMPAIGN, campaign, experiment, firmware, run

pytestmark = pytest.mark.slow

DEVICES = 5
GATEWAY = "site-1"
CONFIG = campaign(rounds=3, min_devices=DEVICES, epochs=2, deadline_seconds=120)


def learnt(store: SqlStore) -> list[Any]:
    """Who took part in each round, what they said of their scores, and the weights after it."""
    return [
        (
            one.number,
            sorted(
                (report["device"], report["plan"], report["correct_after"], report["coded_bytes"])
                for report in store.reports(CAMPAIGN, one.number)
            ),
            store.weights(CAMPAIGN, one.number).sha256,
        )
        for one in store.rounds(CAMPAIGN)
    ]


def live(of: Population, folder: Path) -> list[Any]:
    specs = [of.spec(number) for number in of.numbers]
    names = [one.device for one in specs]
    devices = {one.device: one.password for one in specs}
    config = BrokerConfig(FLEET, {GATEWAY: "secret"}, devices, free_port())
    bundle = specs[0].bundle
    store = SqlStore()
    with Broker(folder / "broker", config) as broker:
        gateway = GatewayProcess(folder, GATEWAY, names, broker.port, "secret")
        with gateway:
            gateway.wait_ready()
            with Fleet(specs, (broker.host, broker.port), workers=1):
                text = (bundle / "manifest.json").read_text()
                weights = (bundle / "weights.bin").read_bytes()
                new_campaign(store, CONFIG, {"b": text}, weights, identifier=CAMPAIGN)
                transport = SocketTransport(GATEWAY, GatewayClient(gateway.socket))
                assert CampaignDriver(store, CAMPAIGN, transport).run() == "finished"
    found = learnt(store)
    store.close()
    return found


def test_a_live_fleet_and_the_same_in_virtual_time_learn_the_same_weights() -> None:
    with tempfile.TemporaryDirectory(prefix="tf") as name:  # short, for the socket's path
        folder = Path(name)
        world = experiment(DEVICES, links={"modem": {"latency_seconds": 0.1, "loss": 0.02}}).world
        of = Population(world, 3, Path(), firmware(folder / "firmware"), FLEET)
        fleet = run(of, LocalPool(of), folder, CONFIG)
        virtual = learnt(fleet.store)
        fleet.close()
        assert [len(reports) for _, reports, _ in virtual] == [DEVICES] * 3
        (folder / "live").mkdir()
        assert live(of, folder / "live") == virtual
