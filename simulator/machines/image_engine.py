"""The training engine as it runs in a bundle's image, called function by function.

The image boots as on a device that nobody has commissioned yet, up to its idle loop; then
functions of the image are called by symbol. The counterpart on the host is
``codegen.firmware.host_engine.HostEngine``; both give the same bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.boards import Board
from codegen.firmware.bundle import Bundle, PlanInfo
from codegen.firmware.graph_file import load_graph
from codegen.firmware.program_file import load_programs
from codegen.program.step_builder import activation_buffer
from simulator.errors import MeasureError
from simulator.machines import unicorn_board
from simulator.machines.counting import InstructionCounter
from simulator.machines.protocol import StopReason
from simulator.machines.qemu import machine as qemu_machine
from simulator.machines.qemu.image_board import CountedBlocks, ImageBoard
from simulator.machines.unicorn import UnicornMachine

# Structs of device_runtime/include/tinyfleet/engine.h on a 32-bit core.
# tf_engine: plan, classes, then tf_frame: weights, arena, state, input, logits, label,
# learning rate, seed, step, loss.
_ENGINE = struct.Struct("<IHxx5IiIIII")
_PLAN, _CLASSES, _WEIGHTS, _ARENA, _STATE, _INPUT, _LOGITS = range(7)
_LOSS = 11
_MODEL_FACTORY_WEIGHTS = 64
_PLAN_SIZES = struct.Struct("<32xII")  # arena_bytes, state_bytes
_BOOT_MILLISECONDS = 10_000


COUNTING = ("unicorn", "qemu")
"""Machines whose firmware's functions can be called, and are counted."""
ImageMachine: TypeAlias = UnicornMachine | ImageBoard
"""A machine whose firmware's functions can be called."""


def machine_for(board: Board) -> str:
    """Name of the machine that this board's image is called in.

    Raises: MeasureError where there is none.
    """
    if unicorn_board.can_call(board):
        return "unicorn"
    if qemu_machine.can_run(board):
        return "qemu"
    raise MeasureError(
        f"no machine that counts instructions is a board like {board.name} (port {board.port}, "
        f"{board.cpu}); measure on one with a core of its kind (`tinyfleet machines`)"
    )


class ImageEngine:
    """One plan of a bundle, loaded with the factory weights on an emulated board.

    >>> with ImageEngine(bundle, plan_id) as engine:
    ...     engine.train_step(sample, 3, 2**20 // 100, seed=5)
    """

    machine: ImageMachine

    def __init__(self, bundle: Bundle, plan_id: str, *, paint: int | None = None) -> None:
        """``paint``: a word that the SRAM is full of before the firmware starts.

        Raises: MeasureError when the bundle has no such plan, or no machine is its board; QemuError
            where that is QEMU, which is missing.
        """
        self._bundle = bundle
        self.plan = find_plan(bundle, plan_id)
        region = bundle.manifest.flash.samples
        # No identity record there: the firmware waits to be commissioned and leaves the pool.
        self._plan_id_address = region.address
        self._sample_address = region.address + 32
        self._sample_bytes = bundle.manifest.model.sample_bytes
        if 32 + self._sample_bytes > region.bytes:
            raise MeasureError(f"a sample of {self._sample_bytes} bytes doesn't fit the sample log")
        content = [(region.address, bytes.fromhex(self.plan.id))]
        if machine_for(bundle.board) == "unicorn":
            self.machine = _unicorn(bundle, content, paint)
        else:
            self.machine = ImageBoard(
                bundle.board, bundle.firmware, flash_content=content, paint=paint
            )
        self._stack = ExitStack()
        self._engine = 0

    def __enter__(self) -> ImageEngine:
        """Boot and load the plan.

        Raises: MeasureError, MachineFault when the image doesn't get that far.
        """
        self._stack.callback(self.machine.close)
        try:
            self._boot()
            self._stack.enter_context(self.machine.registers_kept())
            self._load()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give back the machine."""
        self._stack.close()

    @property
    def core(self) -> UnicornMachine:
        """The machine, where it is Unicorn's: what it executes can be watched.

        Raises: MeasureError where it isn't.
        """
        if not isinstance(self.machine, UnicornMachine):
            raise MeasureError(
                f"board {self._bundle.board.name} runs in QEMU, which counts instructions by "
                "function of the image only; compile the model for a board of Unicorn's"
            )
        return self.machine

    def counting(self) -> AbstractContextManager[InstructionCounter | CountedBlocks]:
        """Count the instructions of what is called from now on."""
        if isinstance(self.machine, ImageBoard):
            return self.machine.counting()
        return InstructionCounter(self.core)

    def score(self, sample: NDArray[np.int8], label: int) -> int:
        """Forward pass and loss of an int8 sample (H, W, C); returns the predicted class."""
        self._put_sample(sample, label)
        return self.machine.call("tf_engine_score", self._engine, self._sample_address, label)

    def train_step(
        self, sample: NDArray[np.int8], label: int, learning_rate_q20: int, seed: int
    ) -> None:
        """One step of SGD; ``learning_rate_q20`` is the learning rate times 2**20."""
        self._put_sample(sample, label)
        self.machine.call(
            "tf_engine_train_step",
            self._engine,
            self._sample_address,
            label,
            learning_rate_q20,
            seed,
        )

    @property
    def logits(self) -> NDArray[np.int32]:
        """Logits of the last forward pass, in units of the manifest's logit_scale.

        Of outputs that are a tensor's codes, these less their zero point: between ``score`` and
        what is called next.
        """
        fields = self._fields()
        output = self._bundle.manifest.model.output
        if output is not None:
            graph, _ = load_graph(self._bundle)
            name = activation_buffer(graph, graph.ending.input)
            program = load_programs(self._bundle)[self.plan.id]
            offset = next(buffer.offset for buffer in program.buffers if buffer.name == name)
            data = self.machine.read_memory(fields[_ARENA] + offset, graph.ending.outputs)
            return np.frombuffer(data, np.int8).astype(np.int32) - output.zero_point
        data = self.machine.read_memory(fields[_LOGITS], 4 * fields[_CLASSES])
        return np.frombuffer(data, "<i4").astype(np.int32)

    @property
    def loss_q16(self) -> int:
        """Loss of the last labelled sample times 2**16, in the unit of ``ir.LOSS_UNITS``."""
        return self._fields()[_LOSS]

    @property
    def state(self) -> bytes:
        """The plan's whole update state: working copies and fractions."""
        fields = self._fields()
        return self.machine.read_memory(fields[_STATE], self._plan_sizes(fields[_PLAN])[1])

    @property
    def arena(self) -> bytes:
        """Activations, masks, errors and scratch as the last step left them."""
        fields = self._fields()
        return self.machine.read_memory(fields[_ARENA], self._plan_sizes(fields[_PLAN])[0])

    def _put_sample(self, sample: NDArray[np.int8], label: int) -> None:
        labels = self._bundle.manifest.model.labels
        if sample.dtype != np.int8 or sample.size != self._sample_bytes:
            shape = tuple(self._bundle.manifest.model.input.shape)
            raise MeasureError(
                f"the sample has {sample.size} values of {sample.dtype}, the model's input is"
                f" int8 {shape}, with targets {self._sample_bytes} bytes"
            )
        if not 0 <= label < labels:
            raise MeasureError(f"label {label} is none of 0 … {labels - 1}")
        self.machine.write_flash(self._sample_address, sample.tobytes())

    def _fields(self) -> tuple[int, ...]:
        return _ENGINE.unpack(self.machine.read_memory(self._engine, _ENGINE.size))

    def _plan_sizes(self, plan: int) -> tuple[int, int]:
        arena, state = _PLAN_SIZES.unpack(self.machine.read_memory(plan, _PLAN_SIZES.size))
        return arena, state

    def _boot(self) -> None:
        reason = self.machine.run(_BOOT_MILLISECONDS)
        if reason is not StopReason.IDLE:
            raise MeasureError(
                f"{self._bundle.firmware} didn't get to its idle loop ({reason.value}):"
                f" {self.machine.fault or 'PC ' + hex(self.machine.pc)}"
            )

    def _load(self) -> None:
        machine, image = self.machine, self.machine.image
        # The engine's struct takes a few bytes of stack, so that all of the pool is the plan's.
        machine.stack_pointer = (machine.stack_pointer - _ENGINE.size) & ~7
        self._engine = machine.stack_pointer
        model = image.address_of("tf_the_model")
        pool = image.address_of("__pool_start")
        pool_bytes = image.address_of("__pool_end") - pool
        plan = machine.call("tf_engine_find_plan", model, self._plan_id_address)
        if plan == 0:
            raise MeasureError(
                f"{self._bundle.firmware} doesn't hold plan {self.plan.id}; the bundle's parts"
                " don't belong together: compile it again"
            )
        weights = int.from_bytes(machine.read_memory(model + _MODEL_FACTORY_WEIGHTS, 4), "little")
        status = machine.call(
            "tf_engine_load", self._engine, model, plan, weights, pool, pool_bytes
        )
        if status != 0:
            raise MeasureError(
                f"plan {self.plan.name} doesn't fit the pool of {pool_bytes} bytes"
                f" (tf_engine_load: {status})"
            )
        fields = self._fields()
        if (fields[_PLAN], fields[_WEIGHTS]) != (plan, weights):
            raise MeasureError("tf_engine of this image isn't laid out as the simulator knows it")


def _unicorn(
    bundle: Bundle, content: Iterable[tuple[int, bytes]], paint: int | None
) -> UnicornMachine:
    machine = UnicornMachine(bundle.board, bundle.firmware, clock=lambda: 0, flash_content=content)
    if paint is not None:
        machine.sram[:] = paint.to_bytes(4, "little") * (bundle.board.sram.bytes // 4)
    return machine


def find_plan(bundle: Bundle, wanted: str | None) -> PlanInfo:
    """The plan with this id, name, or start of an id; the first one for None.

    Raises: MeasureError naming the plans that there are.
    """
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
