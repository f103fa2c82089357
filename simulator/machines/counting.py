"""Exact instruction counts by basic block.

Unicorn calls a hook when a translated block starts, with its address and size. All
instructions of a block are executed once it has started (those whose IT condition is false
count as well: they take their slot on the core, too), so the count of a block is the number
of instructions between its ends, found from the Thumb encoding. An exception to that would be
a block left in its middle, by a fault or by the end of a slice at a register read; calls of
``UnicornMachine.call`` without slices have neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from unicorn import arm_const, unicorn_const
from unicorn.unicorn_py3.unicorn import HOOK_CODE_CFUNC

from simulator.machines.elf_image import ElfImage


class CountedMachine(Protocol):
    """What counting needs: a ``UnicornMachine``, or the bare core of ``kernel_call``."""

    image: ElfImage

    def add_hook(self, kind: int, callback: Any) -> int:
        """Install a raw Unicorn hook."""

    def remove_hook(self, handle: int) -> None:
        """Take it out."""

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of memory."""

    def read_register(self, register: int) -> int:
        """A register by Unicorn's number."""


_Hook: TypeAlias = Callable[[object, int, int, object], None]


def thumb_instructions(code: bytes) -> int:
    """Number of Thumb instructions in ``code``; those that start with 0b11101… take 4 bytes."""
    count = first = 0
    while first < len(code):
        count += 1
        first += 4 if code[first + 1] >> 3 in (0b11101, 0b11110, 0b11111) else 2
    return count


class _BlockCounter(ABC):
    """Watches the blocks that a machine executes between entering and leaving the context."""

    def __init__(self, machine: CountedMachine) -> None:
        """Nothing is counted, and nothing costs time, before the context is entered."""
        self._machine = machine
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Start to count."""
        self._handle = self._machine.add_hook(
            unicorn_const.UC_HOOK_BLOCK, HOOK_CODE_CFUNC(self._hook())
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

    @abstractmethod
    def _hook(self) -> _Hook:
        """What is called with each block: engine, address, size, nothing."""

    def _instructions(self, blocks: Mapping[int, int]) -> int:
        return sum(self._length(key) * times for key, times in blocks.items())

    def _length(self, key: int) -> int:
        return thumb_instructions(self._machine.read_memory(key >> 16, key & 0xFFFF))


class InstructionCounter(_BlockCounter):
    """Counts instructions by the function that they stand in.

    >>> with InstructionCounter(machine) as counter:
    ...     machine.call("tf_engine_predict", engine, sample)
    >>> counter.total
    """

    def __init__(self, machine: CountedMachine) -> None:
        """Counts start at zero."""
        super().__init__(machine)
        self._blocks: dict[int, int] = {}

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
        return self._instructions(self._blocks)

    def by_function(self) -> dict[str, int]:
        """Instructions executed per function symbol of the image, most first."""
        counts: dict[str, int] = {}
        for key, times in self._blocks.items():
            name = self._machine.image.function_at(key >> 16) or "unknown"
            counts[name] = counts.get(name, 0) + self._length(key) * times
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _hook(self) -> _Hook:
        return _counting_hook(self._blocks)


class InclusiveCounter(_BlockCounter):
    """Counts instructions from a call of each of some functions to its return, callees included.

    The functions may not call one another. A call ends where its return address is executed, so
    that tail calls, of them and by them, count for what they are.
    """

    def __init__(self, machine: CountedMachine, functions: Iterable[str]) -> None:
        """``functions`` by symbol. Raises: ImageError where the image doesn't have one of them."""
        super().__init__(machine)
        self._entries = {machine.image.address_of(name): name for name in functions}
        # By function and first argument.
        self._blocks: dict[tuple[str, int], dict[int, int]] = {}
        self._outside: dict[int, int] = {}

    @property
    def outside(self) -> int:
        """Instructions executed in none of the functions and for none of them."""
        return self._instructions(self._outside)

    def by_function(self) -> dict[str, int]:
        """Instructions executed per function, in the order given."""
        counts = dict.fromkeys(self._entries.values(), 0)
        for (name, _), count in self.by_argument().items():
            counts[name] += count
        return counts

    def by_argument(self) -> dict[tuple[str, int], int]:
        """Instructions executed per function and first argument (R0), in the order of calls."""
        return {call: self._instructions(blocks) for call, blocks in self._blocks.items()}

    def _hook(self) -> _Hook:
        entries, outside, machine = self._entries, self._outside, self._machine
        blocks, end = outside, -1

        def count(engine: object, address: int, size: int, _: object) -> None:
            nonlocal blocks, end
            if address == end:
                blocks, end = outside, -1
            name = entries.get(address)
            if name is not None:
                call = name, machine.read_register(arm_const.UC_ARM_REG_R0)
                blocks = self._blocks.setdefault(call, {})
                end = machine.read_register(arm_const.UC_ARM_REG_LR) & ~1
            key = address << 16 | size
            blocks[key] = blocks.get(key, 0) + 1

        return count


def _counting_hook(blocks: dict[int, int]) -> _Hook:
    """One dictionary entry per (address, size): a quarter of a microsecond per block."""

    def count(engine: object, address: int, size: int, _: object) -> None:
        key = address << 16 | size
        blocks[key] = blocks.get(key, 0) + 1

    return count
