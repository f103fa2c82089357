"""What machines of the simulator cost: ``python -m benchmarks.simulator --json``.

So far Renode and QEMU, beside Unicorn in the same run: how long an emulation and its nodes, or a
board, take to start, what they hold in memory, and instructions a second of CPU while a device
trains. A machine that isn't on this computer is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from codegen.compile import compile_model
from codegen.firmware.bundle import Bundle, load_bundle
from fleet.protocol import topics
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Machine, StopReason
from simulator.machines.qemu.machine import QemuMachine
from simulator.machines.registry import MACHINES, boards_of, build_machine, flash_content
from simulator.machines.renode.machine import Emulation, RenodeMachine
from tests.device_runtime.host_device import Publication
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import DIGITS, ROOT, WorldClock
from tests.simulator.line import Line

EPOCHS = 20
SETTLING_SECONDS = 5.0
LONGEST_BOOT_SECONDS = 120.0
TRAINED = (
    ("renode", "stm32f746"),
    ("qemu", "mps2-an500"),
    ("unicorn", "stm32f746"),
    ("qemu", "mps2-an386"),
    ("unicorn", "stm32f407"),
)


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


def boards_in_qemu(bundles: dict[str, Bundle]) -> list[dict[str, Any]]:
    """One board of each core: from nothing until it dials, and idle in the host's time."""
    found = []
    for board in boards_of(MACHINES["qemu"]):
        begun = time.perf_counter()
        one = build_machine(spec_of(bundles[board], "qemu"), Path())
        assert isinstance(one, QemuMachine)
        try:
            while not one.data_terminal_ready:
                if one.run(1.0) is StopReason.FAULT:
                    sys.exit(str(one.fault))
                time.sleep(0.001)
            seconds = time.perf_counter() - begun
            pids = processes_of(one)
            before = cpu_seconds(pids)
            time.sleep(SETTLING_SECONDS)
            found.append(
                {
                    "board": board,
                    "seconds_until_it_dials": round(seconds, 2),
                    "resident_megabytes": round(resident_megabytes(pids)),
                    "cores_while_idle": round((cpu_seconds(pids) - before) / SETTLING_SECONDS, 3),
                }
            )
        finally:
            one.close()
    return found


def processes_of(machine: Machine) -> list[int]:
    """Those that run the core."""
    if isinstance(machine, RenodeMachine):
        return group_of(machine._emulation.monitor.pid)
    if isinstance(machine, QemuMachine) and machine._process is not None:
        return [machine._process.pid]
    return [os.getpid()]


def executed(machine: Machine) -> int:
    """Instructions since the board was made; 0 where nobody counts."""
    if isinstance(machine, RenodeMachine | QemuMachine):
        return machine.executed_instructions
    return 0


def training(bundle: Bundle, machine: str) -> dict[str, float]:
    """CPU that a device's training of its largest plan takes, and instructions where it tells."""
    world = WorldClock()
    with made(bundle, machine, world) as one:
        line = Line(one, world)
        plan = bundle.manifest.plans[-1]
        task = task_for(bytes.fromhex(plan.id), bundle.weights, epochs=EPOCHS)
        topic = "fleet/barn/gw/gw/cow/delta"
        line.until(lambda: bool(line.broker.published))
        line.broker.send(Publication(topics.task("barn", "cow"), task.encode(), True, topic))
        pids = processes_of(one)
        before, begun = executed(one), cpu_seconds(pids)
        line.until(
            lambda: any(said.topic == topic for said in line.broker.published), seconds=3600.0
        )
        return {
            "cpu_seconds": round(cpu_seconds(pids) - begun, 2),
            "million_instructions": round((executed(one) - before) / 1e6),
        }


def measure(nodes: list[int]) -> dict[str, Any]:
    here = [name for name in ("qemu", "renode", "unicorn") if not MACHINES[name].why_absent()]
    with tempfile.TemporaryDirectory() as folder:
        boards = sorted({board for name in here for board in boards_of(MACHINES[name])})
        for board in boards:
            compile_model(
                DIGITS / "digits.onnx",
                board,
                None,
                DIGITS / "calibration.npz",
                Path(folder) / board,
                ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
            )
        bundles = {board: load_bundle(Path(folder) / board) for board in boards}
        found: dict[str, Any] = {"training": []}
        if "renode" in here:
            found["renode"] = fleets_of_nodes(bundles["stm32f746"], nodes)
        if "qemu" in here:
            found["qemu"] = boards_in_qemu(bundles)
        same_work: dict[str, float] = {}
        for name, board in TRAINED:
            if name in here:
                core = bundles[board].board.cpu
                one = training(bundles[board], name)
                # The same work for the same kind of core: as many instructions.
                same_work.setdefault(core, one["million_instructions"])
                one["million_instructions"] = one["million_instructions"] or same_work[core]
                per_second = round(one["million_instructions"] / one["cpu_seconds"])
                found["training"].append(
                    {"machine": name, "board": board, **one, "million_a_cpu_second": per_second}
                )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nodes", default="1,4,16")
    given = parser.parse_args()
    found = measure([int(one) for one in given.nodes.split(",")])
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for part, rows in found.items():
        for one in rows:
            print(f"{part}: " + "  ".join(f"{name} {value}" for name, value in one.items()))


if __name__ == "__main__":
    main()
