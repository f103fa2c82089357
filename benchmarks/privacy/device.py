"""What keys, signatures and masks cost a device: instructions, stack, bytes, flash and SRAM.

Runs rounds of the firmware in emulation (instruction counts are exact): plain, masked, with a clip,
with noise. A round's work is that of a device with 64 samples, 43 of them trained on once and 21
scored before and after; what privacy costs is counted with the device's first masked round, which
computes its keys, and with every later one.

    python -m benchmarks.privacy.device [--board stm32f746] [--mcunet] [--before CHECKOUT]

``--before`` names a checkout of a time before: its image is built as well, and what flash and SRAM
have grown by is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.mcunet import MODEL, PLANS
from codegen.firmware.bundle import Bundle
from fleet.cli._output import console, table
from fleet.firmware import compile_firmware
from fleet.protocol import Delta, Message, topics
from simulator.machines.counting import InclusiveCounter
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.registry import build_machine
from simulator.machines.unicorn import UnicornMachine
from tests.device_runtime.host_device import Publication, counted
from tests.device_runtime.keyed import Keys
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import WorldClock
from tests.simulator.line import Line

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
KEYS = Keys(fleet="barn", name="cow")
TRAINED, SCORED = 43, 21
"""Samples of the round that costs are compared with."""
VARIANTS: Mapping[str, Mapping[str, int]] = {
    "masked": {},
    "masked, clip": {"clip": 300},
    "masked, clip, noise": {"clip": 300, "norm_share": 50, "noise_variance": 1000},
}
WORK = ("tf_engine_train_step", "tf_engine_score")
RICE = ("tf_delta_measure", "tf_delta_encoder_read")
START = "tf_keys_open"
"""Once at each start of a device: it checks a keyring's signature."""
PRIVACY = (
    "tf_keys_signed",
    "tf_keys_make_seal_keys",
    "tf_mask_open",
    "tf_mask_measure",
    "tf_mask_encoder_read",
)
ONCE = "tf_keys_make_seal_keys"
"""Once after each start, with the first masked delta."""
MOST = {"digits": 6.0, "mcunet": 1.0}
"""Percent of a round that are allowed, the signature's check included."""


@dataclass(frozen=True)
class Round:
    """What one round took."""

    instructions: Mapping[str, int]
    """By function, callees included."""
    delta: Delta
    stack_bytes: int


class Device:
    """An emulated board with keys, and a broker and a gateway for it."""

    def __init__(self, machine: UnicornMachine, bundle: Bundle, world: WorldClock) -> None:
        self.machine, self.bundle = machine, bundle
        self.line = Line(machine, world)
        self.round = 0
        with InclusiveCounter(machine, [START]) as counter:
            self.line.until(lambda: bool(self.line.broker.published))
        self.start = counter.by_function()[START]

    def run(self, plan: str, changes: Mapping[str, int] | None) -> Round:
        """One round: with rice where ``changes`` are None, else masked with these parameters."""
        self.round += 1
        task = task_for(
            bytes.fromhex(plan),
            self.bundle.weights,
            round=self.round,
            epochs=1,
            learning_rate_q20=20_000,
            deadline_seconds=100_000,
        )
        task = KEYS.sign(task) if changes is None else KEYS.masked(task, **changes)
        with InclusiveCounter(self.machine, [*WORK, *RICE, *PRIVACY]) as counter:
            self._publish(topics.task("barn", "cow"), task)
            self.line.until(self._is_sent, seconds=100_000)
        delta = self._deltas()[-1]
        self._publish(topics.receipt("barn", "cow"), counted(delta))
        for _ in range(50):
            self.line.step()
        return Round(counter.by_function(), delta, self.machine.stack_high_water_bytes())

    def _publish(self, topic: str, message: Message) -> None:
        retained = topic.endswith("/task")
        answer = topics.delta("barn", "gw", "cow") if retained else ""
        self.line.broker.send(Publication(topic, message.encode(), retained, answer))

    def _is_sent(self) -> bool:
        chunks = self._deltas()
        return bool(chunks) and len(chunks) == chunks[0].chunks

    def _deltas(self) -> list[Delta]:
        sent = [one for one in self.line.broker.published if one.topic.endswith("/delta")]
        found = [Delta.decode(one.payload) for one in sent]
        return [delta for delta in found if delta.round == self.round]


@contextmanager
def device_with(bundle: Bundle, samples: int) -> Iterator[Device]:
    """A board that was just switched on."""
    shape = bundle.manifest.model.input.shape
    draw = np.random.default_rng(5)
    recorded = draw.integers(-128, 128, (samples, *shape)).astype(np.int8)
    labels = draw.integers(0, bundle.manifest.model.classes, samples)
    keys = KEYS.device.encode(), KEYS.authority.public, KEYS.signed_keyring
    spec = DeviceSpec("cow", bundle.path, "moo", recorded, labels, "barn", "unicorn")
    spec = replace(spec, keys=keys[0], authority=keys[1], keyring=keys[2])
    world = WorldClock()
    machine = build_machine(spec, bundle.path, world)
    assert isinstance(machine, UnicornMachine)
    try:
        yield Device(machine, bundle, world)
    finally:
        machine.close()


def cost(found: Round, *, first: bool) -> int:
    """Instructions that are privacy's."""
    return sum(
        count
        for name, count in found.instructions.items()
        if name in PRIVACY and (first or name != ONCE)
    )


def report(name: str, bundle: Bundle, plan_name: str, samples: int) -> bool:
    """Prints what a network's rounds cost; whether they keep to what is allowed."""
    screen = console()
    plan = next(plan for plan in bundle.manifest.plans if plan.name == plan_name)
    rows: list[list[object]] = []
    rounds: dict[str, Round] = {}
    with device_with(bundle, samples) as device:
        plain = device.run(plan.id, None)
        for variant, changes in VARIANTS.items():
            rounds[variant] = device.run(plan.id, changes)
    train, score = (plain.instructions[one] for one in WORK)
    trained, scored = plain.delta.train_steps, 2 * plain.delta.held_out_samples
    rice = sum(plain.instructions[one] for one in RICE)
    work = train // trained * TRAINED + score // scored * 2 * SCORED + rice
    first = rounds["masked"]
    rows.append(["a round without privacy", work, ""])
    for function, counts in {START: device.start, **first.instructions}.items():
        if function not in (START, *PRIVACY):
            continue
        rows.append([function, counts, f"{100 * counts / work:.2f} %"])
    kept = True
    for variant, found in rounds.items():
        later = cost(found, first=False)
        share = 100 * later / work
        kept = kept and (variant != "masked" or share <= MOST[name])
        rows.append([f"{variant}: each round", later, f"{share:.2f} %"])
    whole = cost(first, first=True)
    rows.append(["masked: the first round", whole, f"{100 * whole / work:.2f} %"])
    screen.print(table(f"{name}, plan {plan_name}", ["", "instructions", "of the round"], rows))
    values = plan.delta_values

    def each(variant: str, function: str) -> float:
        return rounds[variant].instructions[function] / values

    mask, measured = each("masked", "tf_mask_encoder_read"), each("masked", "tf_mask_measure")
    noisy = each("masked, clip, noise", "tf_mask_encoder_read")
    clipped = each("masked, clip", "tf_mask_encoder_read")
    per_value: list[list[object]] = [
        ["values of a delta", values],
        ["masking and sending, per value", round(mask)],
        ["the pass before, per value", round(measured)],
        ["a clip, per value and pass", round(clipped - mask)],
        ["passes before, with a clip, per value", round(each("masked, clip", "tf_mask_measure"))],
        ["noise, per value and pass", round(noisy - clipped)],
        ["rice: both passes, per value", round(rice / values)],
        ["bytes up, masked", first.delta.coded_bytes],
        ["bytes up, rice", plain.delta.coded_bytes],
        ["bytes up, dense fp32", 4 * values],
        ["deepest stack, bytes", max(one.stack_bytes for one in rounds.values())],
        ["stack that is reserved, bytes", bundle.board.stack_bytes],
    ]
    screen.print(table(f"{name}, per value and in bytes", ["", ""], per_value))
    return kept


SIZES = """
import json, sys
from pathlib import Path
from fleet.firmware import compile_firmware
model, samples = (Path(sys.argv[1], name) for name in ("digits.onnx", "calibration.npz"))
bundle = compile_firmware(model, sys.argv[2], [], samples, Path(sys.argv[3]))
sram = bundle.report.plans[0].sram_bytes
print(json.dumps([bundle.report.flash_bytes.code, sram.total - sram.arena - sram.state]))
"""


def sizes(checkout: Path, board: str) -> Sequence[int]:
    """Bytes of code, and of SRAM beside a plan's, of the digits' image as a checkout builds it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SIZES, str(DIGITS), board, f"{folder}/bundle"]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(
            command, env=environment, cwd=folder, check=True, capture_output=True, text=True
        )
    return list(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", default="stm32f746")
    parser.add_argument("--mcunet", action="store_true", help="its plan 49kb too")
    parser.add_argument("--before", type=Path, help="a checkout to compare sizes with")
    options = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        digits, samples = DIGITS / "digits.onnx", DIGITS / "calibration.npz"
        bundle = compile_firmware(digits, options.board, [], samples, folder / "digits")
        kept = report("digits", bundle, "middle", TRAINED + SCORED) and kept
        if options.mcunet:
            plan = f"{PLANS}#49kb"
            bundle = compile_firmware(MODEL, options.board, [plan], None, folder / "mcunet")
            kept = report("mcunet", bundle, bundle.manifest.plans[0].name, 6) and kept
    if options.before is not None:
        before, now = sizes(options.before.resolve(), options.board), sizes(ROOT, options.board)
        names = ("flash, code", "SRAM beside a plan's")
        rows: list[list[object]] = [
            [name, was, is_now, is_now - was]
            for name, was, is_now in zip(names, before, now, strict=True)
        ]
        console().print(table("Bytes", ["", "before", "now", "more"], rows))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
