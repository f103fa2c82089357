"""A thousand boards in Unicorn that are live: they dial a Mosquitto over TCP, a gateway has them
train a round, and the fleet's worker processes emulate them meanwhile."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gateway.site import Usage, allow_connections
from codegen.firmware.bundle import MANIFEST, WEIGHTS, Bundle
from fleet.campaign import CampaignConfig
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.demo.site import FLEET, GatewayProcess
from fleet.gateway.broker import Broker, BrokerConfig
from fleet.gateway.client import GatewayClient
from fleet.ports import free_port
from fleet.store import SqlStore
from simulator.fleet.fleet import Fleet, worker_count
from simulator.machines.device_spec import DeviceSpec
from tests.end_to_end.socket_transport import SocketTransport

GATEWAY = "site-1"
CAMPAIGN = "0123456789abcdef"
PATIENCE_SECONDS = 7200
"""For devices to come, and for a round: this measures how long they take, and doesn't judge."""


def live(bundle: Bundle, specs: list[DeviceSpec], plan: str) -> dict[str, Any]:
    """Boot them all at once, and train one round; seconds, CPU and memory of the workers."""
    allow_connections(len(specs))
    devices = {one.device: one.password for one in specs}
    with tempfile.TemporaryDirectory(prefix="tf") as name:  # short, for the socket's path
        folder = Path(name)
        config = BrokerConfig(FLEET, {GATEWAY: "secret"}, devices, free_port())
        with (
            Broker(folder / "broker", config) as broker,
            GatewayProcess(folder, GATEWAY, list(devices), broker.port, "secret") as gateway,
        ):
            gateway.wait_ready()
            began = time.perf_counter()
            with Fleet(specs, (broker.host, broker.port), workers=worker_count()) as fleet:
                built = time.perf_counter()
                transport = SocketTransport(GATEWAY, GatewayClient(gateway.socket))
                found = _round(bundle, fleet, transport, plan, len(specs), folder)
                workers = fleet.worker_stats()
                cpu = sum(Usage.of(one.process).cpu_seconds for one in workers)
                stats = [one for worker in workers for one in worker.devices.values()]
    return {
        "devices": len(specs),
        "workers": len(workers),
        "seconds_until_built": round(built - began, 1),
        **{name: round(at - began, 1) for name, at in found.items()},
        "cpu_seconds": round(cpu, 1),
        "pss_megabytes": sum(one.pss_bytes for one in workers) >> 20,
        "dials": sum(one.dials for one in stats),
        "resets": sum(one.resets for one in stats),
        "faults": sum(one.fault is not None for one in stats),
    }


def _round(
    bundle: Bundle, fleet: Fleet, transport: SocketTransport, plan: str, count: int, folder: Path
) -> dict[str, float]:
    """When all had announced themselves, and when all deltas were there."""
    store = SqlStore()
    campaign = CampaignConfig.model_validate(
        {
            "name": "live",
            "rounds": 1,
            "learning_rate": 0.02,
            "plans": [plan],
            "min_devices": count,
            "deadline_seconds": PATIENCE_SECONDS,
            "wait_for_devices_seconds": PATIENCE_SECONDS,
            "score_first": False,
            "last_round": "none",
        }
    )
    text, weights = (bundle.path / MANIFEST).read_text(), (bundle.path / WEIGHTS).read_bytes()
    new_campaign(store, campaign, {"b": text}, weights, identifier=CAMPAIGN)
    begin = time.time() - time.perf_counter()
    state = CampaignDriver(store, CAMPAIGN, transport).run()
    (one,) = store.rounds(CAMPAIGN)
    began, ended = store.round_times(CAMPAIGN, one.number)
    accepted, reason = one.result.get("accepted"), store.campaign(CAMPAIGN).reason
    assert (state, accepted) == ("finished", count), f"{state}, {accepted} deltas: {reason}"
    assert ended is not None
    store.close()
    return {
        "seconds_until_all_are_there": began - begin,
        "seconds_until_all_have_trained": ended - begin,
    }
