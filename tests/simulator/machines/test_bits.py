"""The same device, task and seed gives the same delta, bit for bit, on every machine.

Each takes tasks that are signed only, and sends its deltas masked as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.protocol import Delta, Task, delta_coding, topics
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Capability
from simulator.machines.registry import (
    MACHINES,
    MachineKind,
    boards_of,
    build_machine,
    prepare_bundle,
)
from tests.device_runtime.host_device import Publication, counted
from tests.device_runtime.keyed import Keys
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import ALL_OUTSIDE, WorldClock, board_called, skip_without
from tests.simulator.line import Line

pytestmark = [pytest.mark.slow]

REFERENCE = ("stm32f407", "unicorn")
"""The board and the machine whose deltas all others have to send."""


def outside(kind: MachineKind) -> list[str]:
    return [ALL_OUTSIDE] if Capability.EXTERNAL_FLASH in kind.capabilities else []


OTHERS = [
    (board, machine)
    for machine, kind in sorted(MACHINES.items())
    for board in [*boards_of(kind), *outside(kind)]
    if (board, machine) != REFERENCE and not board_called(board).engine_only
]
SAMPLES = np.random.default_rng(5).integers(-128, 128, (9, 8, 8, 1)).astype(np.int8)


KEYS = Keys(fleet="barn", name="cow", unmaskers=(bytes([9]) * 32, bytes([10]) * 32))
MASKED = {"clip": 90, "norm_share": 40, "noise_variance": 5_000, "mask_bits": 24}


def deltas(machine: str, bundle: Bundle, folder: Path) -> list[Delta]:
    """What a device with these samples sends for each plan of the bundle, and for the first of them
    once more, masked."""
    prepare_bundle(machine, bundle.path, folder / machine)
    spec = DeviceSpec(
        "cow",
        bundle.path,
        "moo",
        SAMPLES,
        np.arange(9),
        fleet="barn",
        machine=machine,
        keys=KEYS.device.encode(),
        authority=KEYS.authority.public,
        keyring=KEYS.signed_keyring,
    )
    world = WorldClock()
    made = build_machine(spec, folder / machine, world)
    try:
        line = Line(made, world)
        plans = bundle.manifest.plans
        tasks = [
            task_for(bytes.fromhex(plan.id), bundle.weights, round=number, learning_rate_q20=20_000)
            for number, plan in enumerate([*plans, plans[0]], 1)
        ]
        signed = [*map(KEYS.sign, tasks[:-1]), KEYS.masked(tasks[-1], **MASKED)]
        for number, task in enumerate(signed, 1):
            delta_topic = "fleet/barn/gw/gw/cow/delta"
            line.broker.send(
                Publication(topics.task("barn", "cow"), task.encode(), True, delta_topic)
            )
            line.until(lambda wanted=number: len(sent(line)) == wanted, seconds=600.0)
            receipt = counted(sent(line)[-1]).encode()
            line.broker.send(Publication(topics.receipt("barn", "cow"), receipt, False))
        *plain, masked = sent(line)
        assert_masked(masked, signed[-1], plain[0], plans[0].delta_values)
        return plain
    finally:
        made.close()


def assert_masked(masked: Delta, task: Task, plain: Delta, count: int) -> None:
    """The masked delta has the bytes of the oracle for the values of the plain one."""
    values = delta_coding.decode(plain.coded, count).tolist()
    assert masked.coded == KEYS.mask(task, masked.coded[:12], values)
    assert replace(masked, coded=b"", coded_bytes=0, coded_crc32=0, round=0) == replace(
        plain, coded=b"", coded_bytes=0, coded_crc32=0, round=0, coding=1, weighting=1
    )


def sent(line: Line) -> list[Delta]:
    """Deltas in the order of their rounds, each once."""
    by_round = {
        delta.round: delta
        for one in line.broker.published
        if one.topic.endswith("/delta")
        for delta in [Delta.decode(one.payload)]
    }
    return [by_round[number] for number in sorted(by_round)]


@pytest.fixture(scope="module")
def wanted(
    compiled: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> list[Delta]:
    board, machine = REFERENCE
    return deltas(machine, compiled(board), tmp_path_factory.mktemp(machine))


@pytest.mark.parametrize(("board", "machine"), OTHERS)
def test_every_machine_sends_the_same_deltas_on_every_board(
    compiled: Callable[[str], Bundle],
    wanted: list[Delta],
    tmp_path: Path,
    board: str,
    machine: str,
) -> None:
    assert len(wanted) >= 3
    assert all(one.coded for one in wanted)
    skip_without(machine)
    assert deltas(machine, compiled(board), tmp_path) == wanted
