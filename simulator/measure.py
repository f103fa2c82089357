"""What a bundle costs when its image runs: instructions, stack, SRAM; and what it computes.

The image boots as on a device that nobody has commissioned yet, up to its idle loop. Then
functions of the image are called by symbol: the engine is loaded with the factory weights in
the pool, scores a sample that lies in flash, and trains on it. Counts, stack and result are
from one run; which words of SRAM are written is watched in a second one, since watching every
store is slow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from unicorn import unicorn_const
from unicorn.unicorn_py3.unicorn import HOOK_MEM_ACCESS_CFUNC

from codegen.boards import load_board
from codegen.bundle import Bundle, PlanInfo, load_bundle
from simulator.counting import InstructionCounter
from simulator.errors import ImageError, MachineFault, MeasureError
from simulator.machine import StopReason
from simulator.unicorn_machine import UnicornMachine

# tf_engine of device_runtime/include/tinyfleet/engine.h on a 32-bit core: plan, classes, then
# tf_frame: weights, arena, state, input, logits, label, learning rate, seed, step, loss.
_ENGINE = struct.Struct("<IHxx5IiIIII")
_BOOT_MILLISECONDS = 10_000
_Q16, _Q20 = 1 << 16, 1 << 20


@dataclass(frozen=True)
class Instructions:
    """Executed instructions; predicated-false ones count."""

    forward: int
    """Forward pass and loss of one sample (tf_engine_score)."""
    step: int
    """One step of training on one sample (tf_engine_train_step)."""
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
    """Cross entropy of the sample in nats, before the step."""
    predicted: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self)


def measure(
    bundle_dir: Path | str,
    plan_id: str | None = None,
    machine: str = "unicorn",
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
        machine: "unicorn".
        sample: int8 [H, W, C] in the model's input scale; random from ``seed`` where None.
        label: of the sample.
        learning_rate: of the step, a real number.
        seed: of the step's stochastic rounding, and of the random sample.

    Raises: BundleError for a damaged bundle; MeasureError for an unknown plan or machine, a
        wrong sample, or an image that faults.
    """
    if machine != "unicorn":
        raise MeasureError(f"no machine {machine!r} can measure; use unicorn")
    bundle = load_bundle(bundle_dir)
    plan = _find_plan(bundle, plan_id)
    shape = bundle.manifest.model.input.shape
    if sample is None:
        random = np.random.default_rng(seed)
        sample = random.integers(-128, 128, shape).astype(np.int8)
    if sample.dtype != np.int8 or sample.size != int(np.prod(shape)):
        raise MeasureError(
            f"the sample has {sample.size} values of {sample.dtype}, the model's input is int8"
            f" {tuple(shape)}"
        )
    if not 0 <= label < bundle.manifest.model.classes:
        raise MeasureError(f"label {label} is none of 0 … {bundle.manifest.model.classes - 1}")
    step = (round(learning_rate * _Q20), seed)
    try:
        with _Session(bundle, plan, sample) as session:
            counted = session.count(label, *step)
        with _Session(bundle, plan, sample) as session:
            touched = session.watch_stores(label, *step)
    except (ImageError, MachineFault) as error:
        raise MeasureError(f"bundle {bundle_dir}, plan {plan.name}: {error}") from error
    return Measurement(
        board=bundle.manifest.board.name,
        machine=machine,
        plan=plan.id,
        plan_name=plan.name,
        instructions=Instructions(counted.forward, counted.step, counted.by_kernel),
        stack_high_water_bytes=counted.stack_bytes,
        sram_touched_bytes=touched,
        sram_limit_bytes=load_board(bundle.manifest.board.name).sram_limit_bytes,
        logits=[value * bundle.manifest.model.logit_scale for value in counted.logits],
        loss=counted.loss_q16 / _Q16,
        predicted=counted.predicted,
    )


def _find_plan(bundle: Bundle, wanted: str | None) -> PlanInfo:
    plans = bundle.manifest.plans
    if wanted is None:
        return plans[0]
    for plan in plans:
        if wanted in (plan.id, plan.name):
            return plan
    by_prefix = [plan for plan in plans if len(wanted) >= 4 and plan.id.startswith(wanted)]
    if len(by_prefix) == 1:
        return by_prefix[0]
    known = ", ".join(f"{plan.name} ({plan.id[:12]})" for plan in plans)
    raise MeasureError(f"bundle {bundle.path} has no plan {wanted!r}; it has {known}")


@dataclass(frozen=True)
class _Counted:
    forward: int
    step: int
    by_kernel: dict[str, int]
    stack_bytes: int
    logits: list[int]
    loss_q16: int
    predicted: int


class _Session:
    """A freshly made machine for one measurement, not yet running."""

    def __init__(self, bundle: Bundle, plan: PlanInfo, sample: NDArray[np.int8]) -> None:
        self._bundle, self._plan = bundle, plan
        region = bundle.manifest.flash.samples
        # No identity record: the firmware waits to be commissioned and leaves the pool alone.
        content = sample.tobytes() + b"\xff" * (-sample.size % 4)
        self._sample = region.address
        self._plan_id = region.address + len(content)
        content += bytes.fromhex(plan.id)
        if len(content) > region.bytes:
            raise MeasureError(f"a sample of {sample.size} bytes doesn't fit the sample region")
        self.machine = UnicornMachine(
            load_board(bundle.manifest.board.name),
            bundle.firmware,
            clock=lambda: 0,
            flash_content=[(region.address, content)],
        )
        self._engine = 0

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    def count(self, label: int, learning_rate_q20: int, seed: int) -> _Counted:
        machine = self.machine
        self._boot()
        boot_stack = machine.stack_high_water_bytes()
        with self._loaded_engine():
            with InstructionCounter(machine) as counter:
                predicted = machine.call("tf_engine_score", self._engine, self._sample, label)
                forward = counter.total
                fields = self._engine_fields()
                counter.clear()
                self._train(label, learning_rate_q20, seed)
                by_kernel = counter.by_function()
            logits = struct.unpack(
                f"<{self._bundle.manifest.model.classes}i",
                machine.read_memory(fields[6], 4 * self._bundle.manifest.model.classes),
            )
        return _Counted(
            forward=forward,
            step=sum(by_kernel.values()),
            by_kernel=by_kernel,
            stack_bytes=max(boot_stack, machine.stack_high_water_bytes()),
            logits=list(logits),
            loss_q16=fields[11],
            predicted=predicted,
        )

    def watch_stores(self, label: int, learning_rate_q20: int, seed: int) -> int:
        base, size = self.machine.board.sram.address, self.machine.board.sram.bytes
        written = bytearray(size // 4)
        self.machine.add_hook(
            unicorn_const.UC_HOOK_MEM_WRITE, HOOK_MEM_ACCESS_CFUNC(_store_hook(base, written))
        )
        self._boot()
        with self._loaded_engine():
            machine = self.machine
            machine.call("tf_engine_score", self._engine, self._sample, label)
            self._train(label, learning_rate_q20, seed)
        return 4 * sum(written)

    def _boot(self) -> None:
        reason = self.machine.run(_BOOT_MILLISECONDS)
        if reason is not StopReason.IDLE:
            raise MeasureError(
                f"{self._bundle.firmware} didn't get to its idle loop ({reason.value}):"
                f" {self.machine.fault or 'PC ' + hex(self.machine.pc)}"
            )

    @contextmanager
    def _loaded_engine(self) -> Iterator[None]:
        """The engine's struct takes a few bytes of stack, as it does in the client's frame."""
        machine, image = self.machine, self.machine.image
        with machine.registers_kept():
            machine.stack_pointer = (machine.stack_pointer - _ENGINE.size) & ~7
            self._engine = machine.stack_pointer
            model = image.address_of("tf_the_model")
            pool = image.address_of("__pool_start")
            pool_bytes = image.address_of("__pool_end") - pool
            plan = machine.call("tf_engine_find_plan", model, self._plan_id)
            if plan == 0:
                raise MeasureError(
                    f"{self._bundle.firmware} doesn't hold plan {self._plan.id}; the bundle's"
                    " parts don't belong together: compile it again"
                )
            weights = int.from_bytes(machine.read_memory(model + 64, 4), "little")
            status = machine.call(
                "tf_engine_load", self._engine, model, plan, weights, pool, pool_bytes
            )
            if status != 0:
                raise MeasureError(
                    f"plan {self._plan.name} doesn't fit the pool of {pool_bytes} bytes"
                    f" (tf_engine_load: {status})"
                )
            fields = self._engine_fields()
            if (fields[0], fields[2]) != (plan, weights):
                raise MeasureError("tf_engine of this image isn't laid out as measure.py knows it")
            yield

    def _engine_fields(self) -> tuple[int, ...]:
        return _ENGINE.unpack(self.machine.read_memory(self._engine, _ENGINE.size))

    def _train(self, label: int, learning_rate_q20: int, seed: int) -> None:
        self.machine.call(
            "tf_engine_train_step", self._engine, self._sample, label, learning_rate_q20, seed
        )


def _store_hook(base: int, written: bytearray) -> Callable[..., None]:
    """Marks the words of SRAM that a store touches."""
    limit = 4 * len(written)

    def mark(engine: object, kind: int, address: int, size: int, value: int, _: object) -> None:
        first = address - base
        if 0 <= first < limit:
            written[first >> 2] = 1
            written[(first + size - 1) >> 2] = 1

    return mark
