"""What metrics and traces cost a gateway: instructions for each device of a round, by Valgrind.

    python -m benchmarks.watching

The gateway's core and store take all that a device sends in a round of its own (the fleet's
announcements, task, a status that it trains, delta, a status that it rests), without broker and
sockets, and in virtual time. Instructions of two numbers of devices are taken from each other, so
that what a process takes to begin isn't in them. The round doesn't end: the few spans that are
written once for each round aren't in them either.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from benchmarks.gateway.deltas import ANNOUNCED_SAMPLES, PLAN, WEIGHTS, WEIGHTS_DATA, Deltas
from benchmarks.gateway.device import FLEET, GATEWAY
from benchmarks.gateway.rounds import CAMPAIGN, DEADLINE_SECONDS
from fleet.clock import VirtualClock
from fleet.gateway.actions import Action, Publish
from fleet.gateway.config import BrokerSettings, GatewaySettings, MetricsSettings
from fleet.gateway.core import Core, Job
from fleet.gateway.daemon import MAX_BATCH
from fleet.gateway.replies import read_request
from fleet.gateway.store import RoundStore
from fleet.protocol import Announce, Delta, DeviceState, Reason, Status, Task, topics

VARIANTS = ("off", "metrics", "traces", "both")
VALUES = 2606
FEW, MANY = 200, 800
_COUNTED = re.compile(r"Collected : (\d+)")


class SilentLink:
    """Drops what it is told."""

    waiting = 0

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def publish(self, message: Publish) -> None: ...

    def subscribe(self, filters: object) -> None: ...

    def unsubscribe(self, names: object) -> None: ...


def watchers(variant: str, settings: GatewaySettings) -> list[Callable[[Action], None]]:
    """What watches the core."""
    found: list[Callable[[Action], None]] = []
    if variant in ("metrics", "both"):
        from fleet.gateway.metrics import GatewayMetrics

        found.append(GatewayMetrics(settings, VirtualClock()).watch)
    if variant in ("traces", "both"):
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from fleet.gateway.rounds import RoundKey
        from fleet.gateway.traces import GatewayTraces
        from fleet.tracing import Traces, place_of_round, traceparent

        traces = Traces("gateway", InMemorySpanExporter(), at_once=True)
        made = GatewayTraces(traces, GATEWAY, 3, VirtualClock())
        made.told(RoundKey(bytes.fromhex(CAMPAIGN), 1), traceparent(place_of_round(CAMPAIGN, 1)))
        found.append(made.watch)
    return found


def run(variant: str, devices: int, folder: Path) -> None:
    """One round of so many devices."""
    settings = GatewaySettings(
        fleet=FLEET,
        gateway=GATEWAY,
        store=folder / "store.sqlite",
        socket=folder / "socket",
        broker=BrokerSettings(user=GATEWAY, password_file=folder / "password"),
        metrics=MetricsSettings(port=9464),
    )
    store = RoundStore(settings.store, survives_power_cuts=False)
    watching = watchers(variant, settings)
    extra: dict[str, Any] = {"watchers": watching} if watching else {}
    core = Core(settings, store, SilentLink(), VirtualClock(), 1, **extra)
    deltas, names = Deltas(VALUES), [f"device-{number:05}" for number in range(devices)]
    said = Announce(
        *("stm32f746", b"b" * 32, WEIGHTS, bytes(32), 0, 100_000, 90, 9600),
        *(ANNOUNCED_SAMPLES, 30, 0, 0, 0),
    )
    take(core, [(topics.announce(FLEET, name), said.encode()) for name in names])
    start(core, names)
    campaign = bytes.fromhex(CAMPAIGN)
    (found,) = core.logic.rounds.values()
    messages = []
    for number, name in enumerate(names):
        status = topics.status(FLEET, name)
        task = found.spec.task(name, len(WEIGHTS_DATA), DEADLINE_SECONDS)
        trains = Status(DeviceState.TRAINING, Reason.NONE, campaign, 1, 90)
        messages += [(status, trains.encode())]
        for chunk in chunks(task, deltas, number):
            messages += [(topics.delta(FLEET, GATEWAY, name), chunk.encode())]
        rests = Status(DeviceState.IDLE, Reason.NONE, bytes(8), 0, 90)
        messages += [(status, rests.encode())]
    take(core, messages)
    assert found.tally.accepted == devices, found.counters
    store.close()


def chunks(task: Task, deltas: Deltas, number: int) -> list[Delta]:
    """What a device sends."""
    coded, size = deltas.coded(number, 1), task.uplink_chunk_bytes
    count = max(1, -(-len(coded.data) // size))
    samples = deltas.samples(number, 1)
    return [
        Delta(
            lease=task.lease,
            campaign=task.campaign,
            round=task.round,
            plan=task.plan[:8],
            weights=task.weights[:8],
            coding=task.coding,
            weighting=task.weighting,
            chunk=chunk,
            chunks=count,
            coded_bytes=len(coded.data),
            coded_crc32=coded.crc32,
            train_samples=samples,
            train_steps=samples,
            held_out_samples=10,
            correct_before=4,
            correct_after=7,
            loss_before_thousandths=1500,
            loss_after_thousandths=800,
            correct_local=0,
            kept=0,
            coded=coded.data[chunk * size : (chunk + 1) * size],
        )
        for chunk in range(count)
    ]


def start(core: Core, names: list[str]) -> None:
    """The round, with all of its tasks published."""
    plan, weights = PLAN.hex(), WEIGHTS.hex()
    request = {
        "campaign": CAMPAIGN,
        "round": 1,
        "action": "train",
        "blobs": [{"sha256": weights, "data": WEIGHTS_DATA}],
        "tasks": [
            {"plan": plan, "weights": weights, "devices": {n: [1, 1000] for n in names}},
        ],
        "plans": {plan: {"values": VALUES, "bounds": [[VALUES, 1 << 16]]}},
        "epochs": 1,
        "learning_rate": 0.01,
        "seed": 1,
        "deadline_seconds": DEADLINE_SECONDS,
        "target": len(names),
    }
    question = read_request(core, "start", request)
    reply: Future[Any] = Future()
    core.work([Job(question.work, reply)])
    reply.result(timeout=0)
    while core.unsent:
        core.work([])


def take(core: Core, messages: list[tuple[str, bytes]]) -> None:
    """Messages of the broker, in batches as the daemon takes them."""
    for first in range(0, len(messages), MAX_BATCH):
        core.work([core.arrived(*one, False) for one in messages[first : first + MAX_BATCH]])
    while core.unsent:
        core.work([])


def counted(variant: str, devices: int) -> int:
    """Instructions of a process that runs it."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        sys.exit("valgrind isn't installed")
    tool = ["--tool=callgrind", "--callgrind-out-file=/dev/null"]
    inner = [sys.executable, "-m", "benchmarks.watching", "--inner", variant, str(devices)]
    done = subprocess.run(
        ["env", "PYTHONHASHSEED=0", valgrind, *tool, *inner], capture_output=True, text=True
    )
    found = _COUNTED.search(done.stderr)
    if done.returncode or found is None:
        sys.exit(done.stderr[-2000:])
    return int(found[1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching")
    parser.add_argument("--inner", nargs=2, metavar=("VARIANT", "DEVICES"), help="what is counted")
    options = parser.parse_args(arguments)
    if options.inner:
        with tempfile.TemporaryDirectory() as folder:
            run(options.inner[0], int(options.inner[1]), Path(folder))
        return 0
    print("instructions for each device of a round, gateway's core and store")
    base = 0.0
    for variant in VARIANTS:
        each = (counted(variant, MANY) - counted(variant, FEW)) / (MANY - FEW)
        base = base or each
        print(f"{variant:8} {each:>12,.0f}  {each / base - 1:+7.2%}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
