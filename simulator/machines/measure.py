"""What a bundle costs when its image runs: instructions, stack, SRAM; and what it computes.

An ``ImageEngine`` scores a sample under the factory weights and trains on it. Counts, stack and
result are from one run; which words of SRAM are written comes from two more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.bundle import Bundle, load_bundle
from codegen.graph.ir import LOSS_UNITS
from simulator.errors import ImageError, MachineFault, MeasureError
from simulator.machines.counting import InclusiveCounter
from simulator.machines.image_engine import COUNTING, ImageEngine, find_plan, machine_for
from simulator.machines.qemu.debugger import QemuError

__all__ = ["ImageEngine", "Instructions", "Measurement", "StepProfile", "measure", "profile_step"]

_Q16, _Q20 = 1 << 16, 1 << 20


@dataclass(frozen=True)
class Instructions:
    """Executed instructions; predicated-false ones count."""

    forward: int
    """Forward pass and loss of one sample (tf_engine_score)."""
    step: int
    """One step of training on one sample (tf_engine_train_step).

    Where a plan accumulates, the mean over as many samples as an update takes.
    """
    by_kernel: dict[str, int]
    """Of the step, per function of the image, most first."""


@dataclass(frozen=True)
class Measurement:
    """What one plan of a bundle costs and computes on its board."""

    board: str
    machine: str
    plan: str
    plan_name: str
    instructions: Instructions
    stack_high_water_bytes: int
    """Deepest stack use of boot, idle loop, and the engine called from the idle loop."""
    sram_touched_bytes: int
    """Bytes of all SRAM words written from reset to the end of the training step."""
    sram_limit_bytes: int
    logits: list[float]
    """Of the sample under the factory weights, before the step."""
    loss: float
    """Of the sample, before the step, in ``loss_unit``."""
    loss_unit: str
    predicted: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self)


@dataclass(frozen=True)
class StepProfile:
    """Instructions of one step of training by the functions that it consists of."""

    by_function: dict[str, int]
    """Callees included, in the order asked for."""
    by_constant: dict[tuple[str, str], int]
    """The same by function and the symbol that its first argument points to, which is that of a
    layer for most kernels; "" where it points to none."""
    outside: int
    """What lies in none of them: the engine that calls them."""


def measure(
    bundle_dir: Path | str,
    plan_id: str | None = None,
    machine: str | None = None,
    *,
    sample: NDArray[np.int8] | None = None,
    label: int = 0,
    learning_rate: float = 0.01,
    seed: int = 1,
) -> Measurement:
    """Run a bundle's image and report what it takes.

    Args:
        bundle_dir: folder of the bundle.
        plan_id: id of the plan, its name, or a prefix of its id; the first plan where None.
        machine: "unicorn" or "qemu"; where None, the one that has the bundle's board.
        sample: int8 [H, W, C] in the model's input scale, with targets flat as a device logs it;
            random from ``seed`` where None.
        label: of the sample.
        learning_rate: of the step, a real number.
        seed: of the step's stochastic rounding, and of the random sample.

    Raises: BundleError for a damaged bundle; MeasureError for an unknown plan or machine, a
        wrong sample, or an image that faults.
    """
    if machine not in (None, *COUNTING):
        raise MeasureError(f"no machine {machine!r} can measure; use {' or '.join(COUNTING)}")
    bundle = load_bundle(bundle_dir)
    plan = find_plan(bundle, plan_id)
    found = machine_for(bundle.board)
    if machine not in (None, found):
        raise MeasureError(
            f"machine {machine!r} can't measure on board {bundle.board.name}; use {found}"
        )
    if sample is None:
        sample = _random_sample(bundle, seed)
    board = bundle.board
    step = (sample, label, round(learning_rate * _Q20), seed)
    try:
        with ImageEngine(bundle, plan.id) as engine:
            with engine.counting() as counter:
                predicted = engine.score(sample, label)
                forward = counter.total
                logits, loss_q16 = engine.logits, engine.loss_q16
                counter.clear()
                batch = int(plan.plan["accumulate"])
                for _ in range(batch):
                    engine.train_step(*step)
                instructions = Instructions(
                    forward,
                    counter.total // batch,
                    {name: count // batch for name, count in counter.by_function().items()},
                )
            stack_bytes = engine.machine.stack_high_water_bytes()
        touched = _touched_bytes(bundle, plan.id, step)
    except (ImageError, MachineFault, QemuError) as error:
        raise MeasureError(f"bundle {bundle_dir}, plan {plan.name}: {error}") from error
    return Measurement(
        board=board.name,
        machine=found,
        plan=plan.id,
        plan_name=plan.name,
        instructions=instructions,
        stack_high_water_bytes=stack_bytes,
        sram_touched_bytes=touched,
        sram_limit_bytes=board.sram_limit_bytes,
        logits=[int(value) * bundle.manifest.model.logit_scale for value in logits],
        loss=loss_q16 / _Q16,
        loss_unit=LOSS_UNITS[plan.plan["loss"]],
        predicted=predicted,
    )


def profile_step(
    bundle: Bundle, plan_id: str, functions: Iterable[str], *, seed: int = 1
) -> StepProfile:
    """Run one step of training as ``measure`` does, and count it by ``functions`` of the image.

    Raises: MeasureError for an unknown plan, a function that isn't in the image, or an image
        that faults.
    """
    plan = find_plan(bundle, plan_id)
    try:
        with (
            ImageEngine(bundle, plan.id) as engine,
            InclusiveCounter(engine.core, functions) as counter,
        ):
            engine.train_step(_random_sample(bundle, seed), 0, round(0.01 * _Q20), seed)
            names = {start: name for name, (start, _) in engine.core.image.symbols.items()}
            by_constant: Counter[tuple[str, str]] = Counter()
            for (function, argument), count in counter.by_argument().items():
                by_constant[function, names.get(argument, "")] += count
            return StepProfile(counter.by_function(), dict(by_constant), counter.outside)
    except (ImageError, MachineFault) as error:
        raise MeasureError(f"bundle {bundle.path}, plan {plan.name}: {error}") from error


def _random_sample(bundle: Bundle, seed: int) -> NDArray[np.int8]:
    random, model = np.random.default_rng(seed), bundle.manifest.model
    return random.integers(-128, 128, model.sample_bytes).astype(np.int8)


def _touched_bytes(bundle: Bundle, plan: str, step: tuple[NDArray[np.int8], int, int, int]) -> int:
    """Bytes of the words of SRAM that are written from reset to the end of a training step.

    The run is made twice, over zeros and over ones: a word that was never written keeps both.
    Watching stores instead is slower, and Unicorn 2.1.4 loses the state of IT blocks over it.
    """
    words = bundle.board.sram_limit_bytes // 4
    kept = np.ones(words, np.bool_)
    for paint in (0x00000000, 0xFFFFFFFF):
        with ImageEngine(bundle, plan, paint=paint) as engine:
            engine.score(step[0], step[1])
            engine.train_step(*step)
            content = engine.machine.read_memory(bundle.board.sram.address, 4 * words)
            kept &= np.frombuffer(content, "<u4") == paint
    return 4 * int((~kept).sum())
