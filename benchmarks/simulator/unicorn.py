"""What devices in Unicorn cost.

Instructions a second of CPU in training, what booting takes, and a fleet of one image that boots
and trains one round: in this process without a network, which tells seconds of CPU and memory that
only the device has; and live (`benchmarks.simulator.live`).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator.emulated import digits_for
from benchmarks.simulator.live import live
from codegen.firmware.bundle import Bundle
from fleet.demo.site import FLEET
from fleet.protocol import topics
from simulator.machines.counting import InstructionCounter
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.image_engine import ImageEngine
from simulator.machines.registry import build_machine
from simulator.machines.unicorn import UnicornMachine
from tests.device_runtime.host_device import Publication
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import WorldClock
from tests.simulator.line import Line

BOARDS = ("stm32f407", "stm32f746")
PLAN = "middle"
SAMPLES = 32
SECONDS = 1.0


def memory_kilobytes() -> dict[str, int]:
    """Of this process: proportional, and what no other has."""
    gc.collect()
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in ("Pss", "Private_Dirty"):
            found[name.lower()] = int(rest.split()[0])
    return found


def training(bundle: Bundle) -> dict[str, dict[str, float]]:
    """Plan → instructions of a training step, and how many a second of CPU."""
    sample = np.random.default_rng(1).integers(-128, 128, bundle.manifest.model.input.shape)
    found = {}
    for plan in bundle.manifest.plans:
        with ImageEngine(bundle, plan.id) as engine:
            step = sample.astype(np.int8), 1, 10_000, 5
            with InstructionCounter(engine.machine) as counter:
                engine.train_step(*step)
            engine.train_step(*step)
            begun, steps = time.process_time(), 0
            while (passed := time.process_time() - begun) < SECONDS:
                engine.train_step(*step)
                steps += 1
            found[plan.name] = {
                "instructions_of_a_step": counter.total,
                "million_instructions_per_cpu_second": round(counter.total * steps / passed / 1e6),
            }
    return found


def spec_of(bundle: Bundle, number: int, fleet: str = "barn") -> DeviceSpec:
    samples = np.random.default_rng(number).integers(-128, 128, (SAMPLES, 8, 8, 1))
    labels = np.arange(SAMPLES) % 10
    name = f"cow-{number:05}"
    return DeviceSpec(name, bundle.path, "moo", samples.astype(np.int8), labels, fleet=fleet)


def device(bundle: Bundle, number: int) -> tuple[UnicornMachine, Line]:
    world = WorldClock()
    machine = build_machine(spec_of(bundle, number), Path(), world)
    assert isinstance(machine, UnicornMachine)
    return machine, Line(machine, world)


def booting(bundle: Bundle) -> dict[str, float]:
    """What of a device's boot is the same for all of its image, and what isn't."""
    found = {}
    blank = UnicornMachine(bundle.board, bundle.firmware, clock=lambda: 0.0)
    with InstructionCounter(blank) as counter:
        blank.run(10_000.0)
        found["instructions_until_identity_is_missed"] = counter.total
    blank.close()
    machine, line = device(bundle, 0)
    with InstructionCounter(machine) as counter:
        line.until(lambda: bool(line.broker.published))
        found["instructions_until_announced"] = counter.total
    machine.close()
    return found


def fleet(bundle: Bundle, count: int) -> dict[str, float]:
    """``count`` devices that share an engine, one after the other: boot, task, delta."""
    plan = next(plan for plan in bundle.manifest.plans if plan.name == PLAN)
    first, _ = device(bundle, 0)
    begun = time.perf_counter()
    before = memory_kilobytes()
    devices: list[tuple[UnicornMachine, Line]] = []

    def build() -> None:
        devices.extend(device(bundle, number) for number in range(1, count + 1))

    def boot() -> None:
        for _, line in devices:
            line.until(lambda line=line: bool(line.broker.published))

    def train() -> None:
        for number, (_, line) in enumerate(devices, 1):
            name = f"cow-{number:05}"
            topic = f"fleet/barn/gw/gw/{name}/delta"
            task = task_for(bytes.fromhex(plan.id), bundle.weights).encode()
            line.broker.send(Publication(topics.task("barn", name), task, True, topic))
            line.until(
                lambda line=line, topic=topic: any(
                    said.topic == topic for said in line.broker.published
                ),
                seconds=3600.0,
            )

    found: dict[str, float] = {"devices": count}
    for name, work in (("build", build), ("boot", boot), ("round", train)):
        found[f"cpu_milliseconds_of_a_{name}"] = round(1e3 * cpu_seconds_of(work) / count, 1)
        for kind, kilobytes in memory_kilobytes().items():
            of_one = (kilobytes - before[kind]) / count
            found[f"{kind}_kilobytes_of_a_device_after_{name}"] = round(of_one)
    found["pss_megabytes"] = round(memory_kilobytes()["pss"] / 1024)
    found["seconds"] = round(time.perf_counter() - begun, 1)
    for machine, _ in devices:
        machine.close()
    first.close()
    return found


def cpu_seconds_of(work: Callable[[], None]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure_part(options: argparse.Namespace) -> dict[str, Any]:
    """``options.unicorn_devices``: of the fleet."""
    found: dict[str, Any] = {}
    with digits_for(*BOARDS) as bundles:
        for bundle in bundles:
            found[bundle.board.name] = {"training": training(bundle), "boot": booting(bundle)}
        count = options.unicorn_devices
        found[BOARDS[0]]["fleet"] = fleet(bundles[0], count)
        specs = [spec_of(bundles[0], number, FLEET) for number in range(count)]
        found[BOARDS[0]]["live"] = live(bundles[0], specs, PLAN)
    return found


def print_part(found: dict[str, Any]) -> None:
    """What ``measure_part`` has found, for a reader."""
    for board, parts in found.items():
        for plan, figures in parts["training"].items():
            print(f"{board}, plan {plan}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
        for part in ("boot", "fleet", "live"):
            for name, value in parts.get(part, {}).items():
                print(f"{board}, {part}: {name} {value}")
