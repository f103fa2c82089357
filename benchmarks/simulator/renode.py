"""Renode, beside Unicorn in the same run: how long an emulation and its nodes take to start, what
they hold in memory, and instructions a second of CPU while a device trains.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from codegen.compile import compile_model
from codegen.firmware.bundle import Bundle, load_bundle
from fleet.protocol import topics
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Machine
from simulator.machines.registry import build_machine, flash_content
from simulator.machines.renode.machine import Emulation, RenodeMachine
from simulator.machines.renode.monitor import find_renode
from tests.device_runtime.host_device import Publication
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import DIGITS, ROOT, WorldClock
from tests.simulator.line import Line

EPOCHS = 20
SETTLING_SECONDS = 5.0
LONGEST_BOOT_SECONDS = 120.0


def group_of(pid: int) -> list[int]:
    """The processes that have been started with this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == pid:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def resident_megabytes(pids: list[int]) -> float:
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def spec_of(bundle: Bundle, machine: str) -> DeviceSpec:
    samples = np.random.default_rng(5).integers(-128, 128, (32, 8, 8, 1)).astype(np.int8)
    labels = np.arange(32) % 10
    return DeviceSpec("cow", bundle.path, "moo", samples, labels, fleet="barn", machine=machine)


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


@contextmanager
def made(bundle: Bundle, machine: str, world: WorldClock) -> Iterator[Machine]:
    one = build_machine(spec_of(bundle, machine), Path(), world)
    try:
        yield one
    finally:
        one.close()


def training(bundle: Bundle, machine: str) -> dict[str, float]:
    """CPU that a device's training of its largest plan takes; instructions where it tells."""
    world = WorldClock()
    with made(bundle, machine, world) as one:
        line = Line(one, world)
        plan = bundle.manifest.plans[-1]
        task = task_for(bytes.fromhex(plan.id), bundle.weights, epochs=EPOCHS)
        topic = "fleet/barn/gw/gw/cow/delta"
        line.until(lambda: bool(line.broker.published))
        line.broker.send(Publication(topics.task("barn", "cow"), task.encode(), True, topic))
        pids = [os.getpid()]
        if isinstance(one, RenodeMachine):
            pids = group_of(one._emulation.monitor.pid)
        renode = one if isinstance(one, RenodeMachine) else None
        before, begun = renode.executed_instructions if renode else 0, cpu_seconds(pids)
        line.until(
            lambda: any(said.topic == topic for said in line.broker.published), seconds=3600.0
        )
        found = {"cpu_seconds": round(cpu_seconds(pids) - begun, 1)}
        if renode:
            found["million_instructions"] = round((renode.executed_instructions - before) / 1e6)
        return found


def measure(nodes: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        compile_model(
            DIGITS / "digits.onnx",
            "stm32f746",
            None,
            DIGITS / "calibration.npz",
            Path(folder) / "f746",
            ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
        )
        bundle = load_bundle(Path(folder) / "f746")
        emulations = fleets_of_nodes(bundle, nodes)
        trained = {machine: training(bundle, machine) for machine in ("renode", "unicorn")}
        # The same work: as many instructions.
        executed = trained["renode"]["million_instructions"]
        for one in trained.values():
            one["million_instructions_per_cpu_second"] = round(executed / one["cpu_seconds"])
        return {"renode": emulations, "training": trained}


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
