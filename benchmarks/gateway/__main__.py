"""Thousands of devices at one gateway: deltas per second, CPU, bytes, and that nothing is lost.

    python -m benchmarks.gateway [--devices N] [--values V] [--rounds R] [--kill] [--json]

A real Mosquitto, the real gateway process with its store on disk, and clients that speak the wire
format of docs/specification/wire.md, all connected all the time. In a round each gets its task,
says that it trains, sends its delta, gets the receipt, says that it rests, and sees the task go. No
device fetches weights (they have those that the task names). The sums are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gateway.deltas import Deltas
from benchmarks.gateway.rounds import Coordinator, kill_broker, kill_gateway
from benchmarks.gateway.site import Site, allow_connections

# Largest milliseconds of gateway CPU per device-round, by values of a delta.
WANTED_MS = {2606: 1.0, 75_000: 8.0}
WANTED_PER_SECOND = {2606: 1000}

# So that there is a middle of a round to kill in.
KILLS_TRAIN_SECONDS = 4.0


def measure(devices: int, values: int, rounds: int, kill: bool, folder: Path) -> dict[str, Any]:
    """All figures."""
    allow_connections(devices)
    deltas = Deltas(values)
    with Site(folder, devices, values, KILLS_TRAIN_SECONDS if kill else 0.0) as site:
        coordinator = Coordinator(site, deltas)
        connecting = coordinator.wait_for_devices()
        kills = {2: partial(kill_gateway, site), 3: partial(kill_broker, site)} if kill else {}
        for round in range(1, rounds + 1):
            coordinator.run(round, kills.get(round))
        state, memory = site.state(), site.gateway_memory
    result, usage = coordinator.result, coordinator.result.usage

    def cpu_ms(process: str) -> float:
        return round_to(1e3 * usage[process].cpu_seconds / result.deltas)

    return {
        "devices": devices,
        "values": values,
        "rounds": rounds,
        "killed": ["gateway", "broker"] if kill else [],
        "connecting_seconds": round_to(connecting),
        "seconds": round_to(result.seconds),
        "coded_bytes_per_delta": round_to(deltas.mean_bytes),
        "deltas_per_second": round_to(result.deltas / result.seconds),
        "gateway_cpu_ms_per_delta": cpu_ms("gateway"),
        "broker_cpu_ms_per_delta": cpu_ms("broker"),
        "load_cpu_ms_per_delta": cpu_ms("load"),
        "broker_bytes_written_per_delta": round_to(usage["broker"].bytes_written / result.deltas),
        "gateway_bytes_written_per_delta": round_to(usage["gateway"].bytes_written / result.deltas),
        "gateway_rss_bytes": memory,
        "control_bytes_max": max(site.control_bytes.values()),
        "control_bytes": site.control_bytes,
        "deltas_sent": state.sent,
        "reconnections": state.reconnections,
        "duplicate": result.duplicate,
        "late": result.late,
        "refused": dict(result.refused),
        "lost": result.lost,
        "doubled": result.doubled,
        "wrong_sums": result.wrong_sums,
    }


def round_to(value: float) -> float:
    """Four digits say more than these figures know."""
    return float(f"{value:.4g}")


def report(figures: dict[str, Any]) -> None:
    """Print all figures, beside what is wanted where something is."""
    wanted: dict[str, tuple[str, bool]] = {
        name: ("0", figures[name] == 0) for name in ("lost", "doubled", "wrong_sums")
    }
    most = WANTED_MS.get(figures["values"])
    if most is not None:
        got = figures["gateway_cpu_ms_per_delta"]
        wanted["gateway_cpu_ms_per_delta"] = (f"<= {most}", got <= most)
    least = WANTED_PER_SECOND.get(figures["values"])
    if least is not None and not figures["killed"]:
        per_second = figures["deltas_per_second"]
        wanted["deltas_per_second"] = (f">= {least} on two cores", per_second >= least)
    for name, value in figures.items():
        text = f"{value:,}" if isinstance(value, int | float) else str(value)
        if name in wanted:
            what, met = wanted[name]
            print(f"{'ok  ' if met else 'MISS'} {name:34} {text:>14}  (wanted {what})")
        else:
            print(f"     {name:34} {text:>14}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway")
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--values", type=int, default=2606, help="of a delta")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--kill",
        action="store_true",
        help="kill the gateway in the middle of round 2, and the broker with all it has in round 3",
    )
    parser.add_argument("--json", action="store_true", help="print the figures for programs")
    options = parser.parse_args(arguments)
    if options.kill and options.rounds < 3:
        parser.error("--kill takes 3 rounds")
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:
        figures = measure(
            options.devices, options.values, options.rounds, options.kill, Path(folder)
        )
    if options.json:
        print(json.dumps(figures))
    else:
        report(figures)
    return 1 if figures["lost"] or figures["doubled"] or figures["wrong_sums"] else 0


if __name__ == "__main__":
    sys.exit(main())
