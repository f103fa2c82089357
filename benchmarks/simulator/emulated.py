"""What the parts on emulated boards share: a board that trains, and what its processes take."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from codegen.compile import compile_model
from codegen.firmware.bundle import Bundle, load_bundle
from fleet.protocol import topics
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Machine
from simulator.machines.qemu.machine import QemuMachine
from simulator.machines.registry import build_machine
from simulator.machines.renode.machine import RenodeMachine
from tests.device_runtime.host_device import Publication
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import DIGITS, ROOT, WorldClock
from tests.simulator.line import Line

EPOCHS = 20
SETTLING_SECONDS = 5.0


@contextmanager
def digits_for(*boards: str) -> Iterator[list[Bundle]]:
    """The example, compiled for these boards."""
    with tempfile.TemporaryDirectory() as folder:
        for board in boards:
            compile_model(
                DIGITS / "digits.onnx",
                board,
                None,
                DIGITS / "calibration.npz",
                Path(folder) / board,
                ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
            )
        yield [load_bundle(Path(folder) / board) for board in boards]


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


@contextmanager
def made(bundle: Bundle, machine: str, world: WorldClock) -> Iterator[Machine]:
    one = build_machine(spec_of(bundle, machine), Path(), world)
    try:
        yield one
    finally:
        one.close()


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
    """CPU that a device's training of its largest plan takes; instructions where it tells."""
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


def with_speed(trained: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The same work, so as many instructions, whoever has counted them."""
    counted = max(one["million_instructions"] for one in trained.values())
    for one in trained.values():
        one["million_instructions"] = counted
        one["million_instructions_per_cpu_second"] = round(counted / one["cpu_seconds"])
    return trained
