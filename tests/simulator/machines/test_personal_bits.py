"""A campaign that personalizes: the same bytes on every machine, nothing personal on the line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from codegen.compile import compile_model
from codegen.firmware.bundle import Bundle
from codegen.program.plans import load_plan
from fleet.protocol import Action, Delta, delta_coding, topics
from fleet.protocol.manifest import Manifest
from fleet.protocol.numbers import KEPT_WITH_LOCAL, KEPT_WITH_PERSONAL, Personal
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.registry import build_machine, prepare_bundle
from tests.device_runtime.host_device import Publication, counted
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import (
    DIGITS,
    ROOT,
    WorldClock,
    board_called,
    skip_without,
)
from tests.simulator.line import Line
from tests.simulator.machines.test_bits import sent

pytestmark = [pytest.mark.slow]

REFERENCE = ("stm32f407", "unicorn")
OTHERS = [
    ("stm32f407", "host"),
    ("stm32f746", "unicorn"),
    ("mps2-an386", "qemu"),
]
TASKS = [
    (Personal.BESIDE, Action.TRAIN),
    (Personal.BESIDE, Action.TRAIN),
    (Personal.FROZEN, Action.TRAIN),
    (Personal.LOCAL, Action.TRAIN),
    (Personal.ALONE, Action.TRAIN),
    (Personal.BESIDE, Action.RELEASE),
]
SAMPLES = np.random.default_rng(5).integers(-128, 128, (12, 8, 8, 1)).astype(np.int8)
HEADER_BYTES, WINDOW_BYTES = 128, 8


class Told(NamedTuple):
    """What a device has sent, byte by byte, and what its flash has for itself."""

    deltas: list[Delta]
    """The last message of each."""
    coded: list[bytes]
    line: bytes
    units: list[bytes]


@pytest.fixture(scope="module")
def personal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The model of the example, whose head and first layer are personal."""

    @functools.cache
    def compiled_for(board: str) -> Bundle:
        plan = load_plan(f"{DIGITS / 'plans.json'}#full").model_copy(
            update={"personal": ["head", "stem"]}
        )
        return compile_model(
            DIGITS / "digits.onnx",
            board_called(board),
            [plan],
            DIGITS / "calibration.npz",
            tmp_path_factory.mktemp("personal") / "digits",
            ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
        )

    return compiled_for


def told_by(machine: str, bundle: Bundle, folder: Path) -> Told:
    """The campaign with one device."""
    prepare_bundle(machine, bundle.path, folder / machine)
    spec = DeviceSpec(
        "cow", bundle.path, "moo", SAMPLES, np.arange(12) % 10, fleet="barn", machine=machine
    )
    world = WorldClock()
    made = build_machine(spec, folder / machine, world)
    line, said = Line(made, world), bytearray()
    take = made.take_transmitted

    def heard() -> bytes:
        data = take()
        said.extend(data)
        return data

    made.take_transmitted = heard  # type: ignore[method-assign]
    try:
        for number, (personal, action) in enumerate(TASKS, 1):
            task = task_for(
                bytes.fromhex(bundle.manifest.plans[0].id),
                bundle.weights,
                action=action,
                personal=personal,
                round=number,
                seed=7 + number,
                learning_rate_q20=40_000,
            )
            line.broker.send(
                Publication(
                    topics.task("barn", "cow"), task.encode(), True, "fleet/barn/gw/gw/cow/delta"
                )
            )
            line.until(lambda wanted=number: len(sent(line)) == wanted, seconds=600.0)
            receipt = counted(sent(line)[-1]).encode()
            line.broker.send(Publication(topics.receipt("barn", "cow"), receipt, False))
        region = bundle.manifest.flash.personal
        assert region is not None
        content = made.read_memory(region.address, region.bytes)
        units = [content[: region.bytes // 2], content[region.bytes // 2 :]]
        coded = [b""] * len(TASKS)
        for one in line.broker.published:
            if one.topic.endswith("/delta"):
                delta = Delta.decode(one.payload)
                coded[delta.round - 1] += delta.coded
        return Told(sent(line), coded, bytes(said), units)
    finally:
        made.close()


def kept(bundle: Bundle, told: Told) -> list[bytes]:
    """What each unit has behind its header, without the sectors' rest."""
    found = []
    for unit in told.units:
        size = int.from_bytes(unit[16:20], "little") + int.from_bytes(unit[24:28], "little")
        found.append(unit[: HEADER_BYTES + size])
    return found


@pytest.fixture(scope="module")
def wanted(personal: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Told:
    board, machine = REFERENCE
    return told_by(machine, personal(board), tmp_path_factory.mktemp(machine))


@pytest.mark.parametrize(("board", "machine"), OTHERS)
def test_every_machine_sends_and_keeps_the_same(
    personal: Callable[[str], Bundle], wanted: Told, tmp_path: Path, board: str, machine: str
) -> None:
    skip_without(machine)
    bundle = personal(board)
    told = told_by(machine, bundle, tmp_path)
    assert (told.deltas, told.coded) == (wanted.deltas, wanted.coded)
    assert kept(bundle, told) == kept(bundle, wanted)


def test_no_byte_on_the_line_is_personal(personal: Callable[[str], Bundle], wanted: Told) -> None:
    bundle = personal(REFERENCE[0])
    plan = Manifest.read(bundle.path).plans[0]
    assert 0 < plan.personal_values < plan.delta_values
    for (use, action), coded in zip(TASKS, wanted.coded, strict=True):
        sends = action is Action.TRAIN and use in (Personal.BESIDE, Personal.FROZEN)
        # A delta has room for exactly the shared values: its form has one length.
        values = delta_coding.decode(coded, plan.shared().delta_values if sends else 0)
        assert bool(values.any()) == sends
    last = wanted.deltas[-1]
    assert last.kept & KEPT_WITH_PERSONAL
    assert last.kept & KEPT_WITH_LOCAL
    newest = max(kept(bundle, wanted), key=lambda unit: int.from_bytes(unit[4:8], "little"))
    searched = 0
    for start in range(HEADER_BYTES, len(newest) - WINDOW_BYTES, 4):
        window = newest[start : start + WINDOW_BYTES]
        if len(set(window)) > WINDOW_BYTES // 2:  # not zeros, which are anywhere
            assert window not in wanted.line, start
            searched += 1
    assert searched > 1000
