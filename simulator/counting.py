"""Exact instruction counts by basic block.

Unicorn calls a hook when a translated block starts, with its address and size. All
instructions of a block are executed once it has started (those whose IT condition is false
count as well: they take their slot on the core, too), so the count of a block is the number
of instructions between its ends, found from the Thumb encoding. An exception to that would be
a block left in its middle, by a fault or by the end of a slice at a register read; calls of
``UnicornMachine.call`` without slices have neither.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from unicorn import unicorn_const
from unicorn.unicorn_py3.unicorn import HOOK_CODE_CFUNC

from simulator.elf_image import ElfImage


class CountedMachine(Protocol):
    """What counting needs: a ``UnicornMachine``, or the bare core of ``kernel_call``."""

    image: ElfImage

    def add_hook(self, kind: int, callback: Any) -> int:
        """Install a raw Unicorn hook."""

    def remove_hook(self, handle: int) -> None:
        """Take it out."""

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of memory."""


def thumb_instructions(code: bytes) -> int:
    """Number of Thumb instructions in ``code``; those that start with 0b11101… take 4 bytes."""
    count = first = 0
    while first < len(code):
        count += 1
        first += 4 if code[first + 1] >> 3 in (0b11101, 0b11110, 0b11111) else 2
    return count


class InstructionCounter:
    """Counts what a machine executes between entering and leaving the context.

    >>> with InstructionCounter(machine) as counter:
    ...     machine.call("tf_engine_predict", engine, sample)
    >>> counter.total
    """

    def __init__(self, machine: CountedMachine) -> None:
        """Nothing is counted, and nothing costs time, before the context is entered."""
        self._machine = machine
        self._blocks: dict[int, int] = {}
        self._handle: int | None = None

    def __enter__(self) -> InstructionCounter:
        """Start to count."""
        self._handle = self._machine.add_hook(
            unicorn_const.UC_HOOK_BLOCK, HOOK_CODE_CFUNC(_counting_hook(self._blocks))
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting; the counts stay."""
        if self._handle is not None:
            self._machine.remove_hook(self._handle)
            self._handle = None

    def clear(self) -> None:
        """Count from zero."""
        self._blocks.clear()

    @property
    def blocks(self) -> int:
        """Number of blocks executed."""
        return sum(self._blocks.values())

    @property
    def total(self) -> int:
        """Number of instructions executed."""
        return sum(self.by_function().values())

    def by_function(self) -> dict[str, int]:
        """Instructions executed per function symbol of the image, most first."""
        counts: dict[str, int] = {}
        for key, times in self._blocks.items():
            address, size = key >> 16, key & 0xFFFF
            length = thumb_instructions(self._machine.read_memory(address, size))
            name = self._machine.image.function_at(address) or "unknown"
            counts[name] = counts.get(name, 0) + length * times
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _counting_hook(blocks: dict[int, int]) -> Callable[[object, int, int, object], None]:
    """One dictionary entry per (address, size): a quarter of a microsecond per block."""

    def count(engine: object, address: int, size: int, _: object) -> None:
        key = address << 16 | size
        blocks[key] = blocks.get(key, 0) + 1

    return count
