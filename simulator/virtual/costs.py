"""How long a device's work takes on its board, and what it takes to do it in virtual time.

Forward passes and training steps take as many instructions as the image executes in Unicorn, at the
board's clock and one instruction a cycle: these cores issue up to one (M4) or two (M7) a cycle and
wait for flash now and then. Erasing and programming are the typical times that ST's data sheets
give for 32-bit parallelism, within 5 %: DS8626 (STM32F407) and DS10916 (STM32F746).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from codegen.firmware.bundle import Bundle
from simulator.machines.host_structs import Costs
from simulator.machines.image_engine import ImageEngine

FLASH_WORD_NANOSECONDS = 16_000
FLASH_ERASE_NANOSECONDS = 150_000_000
"""Of any sector; and for each of its bytes:"""
FLASH_ERASE_BYTE_NANOSECONDS = 6_350
POLL_INSTRUCTIONS = 2_000
"""A look at the link and the clock. Nobody waits for it: hundreds take what one training step of
the smallest network here takes."""


@dataclass(frozen=True)
class PlanInstructions:
    """Instructions of one plan on one sample."""

    forward: int
    """Scoring it."""
    step: int
    """Training on it."""


@dataclass(frozen=True)
class WorkCosts:
    """What a bundle's work takes on its board."""

    clock_hz: int
    plans: tuple[PlanInstructions, ...]
    """In the bundle's order."""

    def slower(self, factor: float) -> WorkCosts:
        """Of a device that computes so many times more slowly."""
        return WorkCosts(max(1, round(self.clock_hz / factor)), self.plans)

    def for_machine(self) -> Costs:
        """The same for `HostMachine.work`."""
        longs = ctypes.c_uint64 * len(self.plans)
        return Costs(
            forward=longs(*(self._nanoseconds(one.forward) for one in self.plans)),
            step=longs(*(self._nanoseconds(one.step) for one in self.plans)),
            poll=self._nanoseconds(POLL_INSTRUCTIONS),
            flash_word=FLASH_WORD_NANOSECONDS,
            flash_erase=FLASH_ERASE_NANOSECONDS,
            flash_erase_byte=FLASH_ERASE_BYTE_NANOSECONDS,
        )

    def _nanoseconds(self, instructions: int) -> int:
        return instructions * 1_000_000_000 // self.clock_hz


def measure_costs(bundle: Bundle) -> WorkCosts:
    """Count the instructions of all plans of a bundle in its image.

    Raises: ImageError or MachineFault where the image doesn't run.
    """
    counted = []
    for plan in bundle.manifest.plans:
        with ImageEngine(bundle, plan.id) as engine, engine.counting() as counter:
            sample = np.zeros(bundle.manifest.model.input.shape, np.int8)
            engine.score(sample, 0)
            forward = counter.total
            counter.clear()
            batch = int(plan.plan.get("accumulate", 1))  # the last sample of a batch costs more
            for _ in range(batch):
                engine.train_step(sample, 0, 1, 1)
            counted.append(PlanInstructions(forward, counter.total // batch))
    return WorkCosts(bundle.board.clock_hz, tuple(counted))
