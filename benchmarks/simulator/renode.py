"""Renode, beside Unicorn in the same run: how long an emulation and its nodes take to start, what
they hold in memory, and instructions a second of CPU while a device trains.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.simulator.emulated import (
    SETTLING_SECONDS,
    cpu_seconds,
    digits_for,
    group_of,
    resident_megabytes,
    spec_of,
    training,
    with_speed,
)
from codegen.firmware.bundle import Bundle
from simulator.machines.registry import flash_content
from simulator.machines.renode.machine import Emulation
from simulator.machines.renode.monitor import find_renode

LONGEST_BOOT_SECONDS = 120.0


def fleets_of_nodes(bundle: Bundle, counts: list[int]) -> list[dict[str, float]]:
    """An emulation with more and more nodes that idle."""
    spec = spec_of(bundle, "renode")
    begun = time.perf_counter()
    emulation = Emulation()
    found = [{"nodes": 0, "seconds": round(time.perf_counter() - begun, 1)}]
    lines = []
    try:
        for count in counts:
            while len(lines) < count:
                firmware = Path(spec.bundle) / "firmware.elf"
                lines.append(emulation.add(bundle.board, firmware, flash_content(spec), 100.0))
            seconds = time.perf_counter() - begun
            emulation.start()
            started = time.perf_counter()
            while not all(line.data_terminal_ready for line in lines):
                if time.perf_counter() - started > LONGEST_BOOT_SECONDS:
                    sys.exit(f"{count} nodes haven't dialled in {LONGEST_BOOT_SECONDS:.0f} s")
                time.sleep(0.05)
            dialled = time.perf_counter() - started
            pids = group_of(emulation.monitor.pid)
            before = cpu_seconds(pids)
            time.sleep(SETTLING_SECONDS)
            busy = (cpu_seconds(pids) - before) / SETTLING_SECONDS
            found.append(
                {
                    "nodes": count,
                    "seconds": round(seconds, 1),
                    "seconds_until_all_dial": round(dialled, 1),
                    "resident_megabytes": round(resident_megabytes(pids)),
                    "cores_while_idle": round(busy, 2),
                }
            )
    finally:
        for line in lines:
            line.close()
        emulation.close()
    return found


def measure(nodes: list[int]) -> dict[str, Any]:
    with digits_for("stm32f746") as (bundle,):
        emulations = fleets_of_nodes(bundle, nodes)
        trained = {machine: training(bundle, machine) for machine in ("renode", "unicorn")}
        return {"renode": emulations, "training": with_speed(trained)}


def measure_part(options: Namespace) -> dict[str, Any]:
    """Figures of the part. Raises RenodeError where Renode is missing."""
    find_renode()
    return measure([int(one) for one in options.nodes.split(",")])


def print_part(found: dict[str, Any]) -> None:
    """Prints them, a line for each."""
    for one in found["renode"]:
        print("  ".join(f"{name} {value}" for name, value in one.items()))
    for machine, figures in found["training"].items():
        print(f"{machine}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
