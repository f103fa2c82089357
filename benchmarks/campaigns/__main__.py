"""Campaigns of a whole deployment: what a round takes beside training, and what it costs.

    python -m benchmarks.campaigns [--devices N] [--campaigns C] [--rounds R] [--json]

`tinyfleet init` and `up` make two sites with a broker and a gateway each; the devices are added
over the API, dial their site's broker and speak docs/specification/wire.md, each with a made-up
time for a task; all campaigns start at once, each for an equal share of both sites. What everybody
counted is compared at the end, and the weights bit for bit.

A round's overhead is the time from its row in the store to that of the next (or to its end, where
it is the last), less the time that the slowest device took from its task to its delta.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.campaigns import device
from benchmarks.campaigns.processes import Watch
from benchmarks.campaigns.rounds import PARTS, problems, read_rounds, spread
from benchmarks.gateway.device import FLEET
from benchmarks.gateway.site import allow_connections
from codegen.firmware.bundle import Bundle, load_bundle
from fleet.campaign.config import CampaignConfig
from fleet.coordinator.settings import CoordinatorSettings, PaceSettings
from fleet.demo.digits import BOARDS, example_folder
from fleet.firmware import compile_firmware
from fleet.protocol.manifest import Manifest
from fleet.service.client import Client
from fleet.service.deployment import Deployment, connect, down, init
from fleet.service.schema import DeviceToAdd
from fleet.store import ENDED_STATES, SqlStore
from tests.deployments import start

SITES = ("north", "south")
MODEL, PLAN = "digits", "middle"
DEVICE_SECONDS = (1.0, 4.0)
PATIENCE_SECONDS = 900.0
WANTED_SECONDS, AIM_SECONDS = 6.0, 3.0
WANTED_SHARE = 0.1
FLOWER_AT_A_GATEWAY = ("supernode", "supernode's superexec", "clientapps")


@dataclass
class Site:
    """A site's devices, in a process."""

    control: Connection
    process: BaseProcess

    def ask(self, what: object) -> Any:
        """What it says; SystemExit where it has failed."""
        self.control.send(what)
        while not self.control.poll(1.0):
            if not self.process.is_alive():
                sys.exit("the devices' process has failed")
        return self.control.recv()


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def measure(
    folder: Path,
    bundle: Bundle,
    devices: int,
    campaigns: int,
    rounds: int,
    idle: float,
    pace: PaceSettings,
) -> dict[str, Any]:
    """All figures of a deployment that is made in ``folder``."""
    allow_connections(devices)
    site_folder = folder / "site"
    deployment = init(site_folder, FLEET, SITES, 1)
    settings_file = site_folder / "coordinator" / "coordinator.toml"
    # Paths are kept as they stand in the file.
    settings = CoordinatorSettings.read(settings_file).model_copy(update={"pace": pace})
    settings.write(settings_file)
    sites: list[Site] = []
    try:
        say("starting")
        start(site_folder)
        with (
            connect(site_folder) as client,
            Watch(site_folder, sorted(deployment.gateways)) as watch,
        ):
            client.import_bundle(MODEL, _manifest_text(bundle), _weights(bundle))
            client.release(MODEL, 1)
            names = [f"mcu-{number:05}" for number in range(devices)]
            passwords = add_devices(client, names, campaigns)
            sites = attach(bundle, deployment, names, passwords)
            _until(
                lambda: sum(one.ask("state").connected for one in sites) == devices,
                "all devices are connected",
            )
            _until(
                lambda: client.preview_devices("online && current != ''").count == devices,
                "the service knows all devices",
            )
            figures: dict[str, Any] = {"devices": devices, "campaigns": campaigns, "rounds": rounds}
            if idle:
                say("idling")
                time.sleep(5.0)
                figures["idle_percent_of_a_core"] = idle_shares(watch, idle)
            before, begun = watch.cpu(), time.time()
            say("campaigns")
            started = [
                client.start_campaign(_config(number, rounds)).campaign
                for number in range(campaigns)
            ]
            _until(
                lambda: all(client.campaign(one).state in ENDED_STATES for one in started),
                "all campaigns have ended",
                1.0,
            )
            ended = time.time()
            time.sleep(1.0)  # devices' last receipts
            after = watch.cpu()
            messages = [one for one in watch.messages() if begun <= one.began <= ended]
            told = [one.ask("diary") for one in sites]
    finally:
        for one in sites:
            one.control.send("stop")
            one.process.join(10)
            one.process.kill()
        down(site_folder)
    diaries = {name: diary for diary, _ in told for name, diary in diary.items()}
    found = [what for _, theirs in told for what in theirs]
    store = SqlStore(settings.store_url())
    try:
        manifest = Manifest.read(bundle.path)
        entry = next(plan for plan in manifest.plans if plan.name == PLAN)
        found += problems(store, started, diaries, manifest, entry)
        logs = {name: site_folder / "logs" / f"gateway-{name}.log" for name in deployment.gateways}
        seen = read_rounds(store, started, diaries, logs)
    finally:
        store.close()
    seconds, gateways = ended - begun, len(deployment.gateways)
    per_round = len(seen) * gateways
    cpu = {what: after[what] - before.get(what, 0.0) for what in after}
    flower = sum(cpu.get(what, 0.0) for what in FLOWER_AT_A_GATEWAY)
    first = {one: min(r.began for r in seen if r.campaign == one) - begun for one in started}
    return {
        **figures,
        "pace": pace.model_dump(),
        "seconds": round(seconds, 1),
        "rounds_in_all": len(seen),
        "problems": found,
        "deltas_counted": sum(
            entry.counted_at is not None for diary in diaries.values() for entry in diary
        ),
        "seconds_to_first_round": spread(first.values()),
        "device_seconds": spread(one.device_seconds for one in seen),
        "overhead_seconds": spread(one.overhead for one in seen),
        "overhead_parts": {
            part: spread(one.parts[part] for one in seen if one.parts) for part in PARTS
        },
        "cpu_seconds": {what: round(value, 2) for what, value in sorted(cpu.items())},
        "cpu_seconds_per_round_and_gateway": {
            what: round(value / per_round, 3) for what, value in sorted(cpu.items())
        },
        "flower_percent_of_a_core_at_a_gateway": round(100 * flower / gateways / seconds, 1),
        "gateway_percent_of_a_core": round(100 * cpu["gateway"] / gateways / seconds, 1),
        "messages": len(messages),
        "messages_per_round_and_gateway": round(len(messages) / per_round, 2),
        "message_seconds": spread(one.ended - one.began for one in messages),
        "message_cpu_seconds": spread(one.cpu for one in messages),
    }


def compiled(folder: Path) -> Bundle:
    """The firmware that the demo's devices have."""
    say("compiling")
    example = example_folder()
    return compile_firmware(
        example / "digits.onnx", BOARDS[0], [], example / "calibration.npz", folder / "bundle"
    )


def _manifest_text(bundle: Bundle) -> str:
    return (bundle.path / "manifest.json").read_text(encoding="utf-8")


def _weights(bundle: Bundle) -> bytes:
    return (bundle.path / bundle.manifest.weights.file).read_bytes()


def _config(number: int, rounds: int) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": f"share-{number}",
            "model": MODEL,
            "kind": "adapt",
            "rounds": rounds,
            "seed": number,
            "target": f'labels.share == "{number}"',
            "plans": [PLAN],
        }
    )


def add_devices(client: Client, names: Sequence[str], campaigns: int) -> dict[str, str]:
    """Register them, dealt to sites and, inside of those, to campaigns; returns passwords."""
    wanted = [
        DeviceToAdd(
            device=name,
            site=SITES[number % len(SITES)],
            labels={"share": str(number // len(SITES) % campaigns)},
        )
        for number, name in enumerate(names)
    ]
    return {one.device: one.password for page in client.add_all_devices(wanted) for one in page}


def attach(
    bundle: Bundle, deployment: Deployment, names: Sequence[str], passwords: Mapping[str, str]
) -> list[Site]:
    """Let them dial."""
    manifest = bundle.manifest
    plan = next(one for one in manifest.plans if one.name == PLAN)
    known = device.Bundle(
        manifest.board.name,
        bytes.fromhex(manifest.bundle_id),
        bytes.fromhex(manifest.weights.sha256),
        bytes.fromhex(plan.id),
        plan.delta_values,
    )
    context = multiprocessing.get_context("spawn")
    sites = []
    for at, site in enumerate(SITES):
        ours, theirs = multiprocessing.Pipe()
        mine = {name: passwords[name] for name in names[at :: len(SITES)]}
        address = ("127.0.0.1", deployment.sites[site].plain)
        process = context.Process(
            target=device.run, args=(mine, known, DEVICE_SECONDS, address, theirs), daemon=True
        )
        process.start()
        sites.append(Site(ours, process))
    return sites


def idle_shares(watch: Watch, seconds: float) -> dict[str, float]:
    """Percent of a core of each kind of process, both gateways' together."""
    before, begun = watch.cpu(), time.monotonic()
    time.sleep(seconds)
    after, took = watch.cpu(), time.monotonic() - begun
    return {
        what: round(100 * (after[what] - before.get(what, 0.0)) / took, 2) for what in sorted(after)
    }


def _until(condition: Callable[[], bool], what: str, look: float = 0.5) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"waited {PATIENCE_SECONDS:.0f} s until {what}")
        time.sleep(look)


def report(figures: Mapping[str, Any]) -> None:
    """Print all figures, beside what is wanted where something is."""
    got, share = figures["overhead_seconds"], figures["flower_percent_of_a_core_at_a_gateway"]
    wanted = {
        "problems": (not figures["problems"], "none"),
        "overhead_seconds": (
            got["median"] <= WANTED_SECONDS,
            f"median <= {WANTED_SECONDS:g}, aim {AIM_SECONDS:g}",
        ),
        "flower_percent_of_a_core_at_a_gateway": (
            share <= 100 * WANTED_SHARE,
            f"<= {100 * WANTED_SHARE:g} where the overhead allows it",
        ),
    }
    for name, value in figures.items():
        met, what = wanted.get(name, (None, ""))
        mark = "     " if met is None else "ok   " if met else "MISS "
        print(f"{mark}{name:38} {'' if isinstance(value, dict) else value}", end="")
        print(f"  (wanted: {what})" if what else "")
        if isinstance(value, dict):
            for key, one in value.items():
                print(f"         {key:34} {one}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns")
    parser.add_argument("--devices", type=int, default=3000)
    parser.add_argument("--campaigns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6, help="training rounds of a campaign")
    parser.add_argument("--idle", type=float, default=0.0, help="first so many seconds of nothing")
    pace = PaceSettings()
    parser.add_argument("--sync-wait", type=float, default=pace.sync_wait_seconds)
    parser.add_argument("--expecting-wait", type=float, default=pace.expecting_wait_seconds)
    parser.add_argument("--bundle", type=Path, help="of digits; it is compiled where left out")
    parser.add_argument("--json", action="store_true", help="print the figures for programs")
    options = parser.parse_args(arguments)
    pace = PaceSettings(
        sync_wait_seconds=options.sync_wait,
        expecting_wait_seconds=options.expecting_wait,
    )
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:
        figures = measure(
            Path(folder),
            load_bundle(options.bundle) if options.bundle else compiled(Path(folder)),
            options.devices,
            options.campaigns,
            options.rounds,
            options.idle,
            pace,
        )
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        report(figures)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
