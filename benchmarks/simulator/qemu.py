"""QEMU, beside Unicorn in the same run: how long a board takes to start, what it holds in memory,
and instructions a second of CPU while it trains.
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
    processes_of,
    resident_megabytes,
    spec_of,
    training,
    with_speed,
)
from codegen.firmware.bundle import Bundle
from simulator.machines.protocol import StopReason
from simulator.machines.qemu.process import find_qemu
from simulator.machines.registry import MACHINES, boards_of, build_machine

SAME_CORE = {"mps2-an386": "stm32f407", "mps2-an500": "stm32f746"}
"""Boards that Unicorn can be, with the core of one that it can't."""


def start_and_idle(bundle: Bundle) -> dict[str, Any]:
    """A board in the host's time: from nothing until it dials, and then."""
    begun = time.perf_counter()
    machine = build_machine(spec_of(bundle, "qemu"), Path())
    try:
        while not machine.data_terminal_ready:
            if machine.run(1.0) is StopReason.FAULT:
                sys.exit(str(machine.fault))
            time.sleep(0.001)
        seconds = time.perf_counter() - begun
        pids = processes_of(machine)
        before = cpu_seconds(pids)
        time.sleep(SETTLING_SECONDS)
        busy = (cpu_seconds(pids) - before) / SETTLING_SECONDS
        return {
            "board": bundle.board.name,
            "seconds_until_it_dials": round(seconds, 2),
            "resident_megabytes": round(resident_megabytes(pids)),
            "cores_while_idle": round(busy, 2),
        }
    finally:
        machine.close()


def measure_part(options: Namespace) -> dict[str, Any]:
    """Figures of the part. Raises QemuError where QEMU is missing."""
    del options
    find_qemu()
    with digits_for(*boards_of(MACHINES["qemu"])) as bundles:
        boards = [start_and_idle(bundle) for bundle in bundles]
    trained = {}
    for board, same in SAME_CORE.items():
        with digits_for(board, same) as (of_arm, of_st):
            trained[of_arm.board.cpu] = with_speed(
                {"qemu": training(of_arm, "qemu"), "unicorn": training(of_st, "unicorn")}
            )
    return {"boards": boards, "training": trained}


def print_part(found: dict[str, Any]) -> None:
    """Prints them, a line for each."""
    for one in found["boards"]:
        print("  ".join(f"{name} {value}" for name, value in one.items()))
    for core, machines in found["training"].items():
        for machine, figures in machines.items():
            said = ", ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{core}, {machine}: {said}")
