"""An engine of Unicorn that boards take turns on.

An engine costs some three megabytes, and translating a firmware takes longer than booting it.
Boards with the same image therefore share one, with their code and its translations in it. A board
has its turn when it executes, or when somebody looks at its registers: then its memory is mapped
where the last one's was, and its registers are restored. Between its turns a board is its memory,
its registers, and objects of Python.

No board notices the others. Translations are a function of the code alone; where boards may differ
in it, which is all of their flash but the image, it is translated anew in each turn.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from unicorn import unicorn_const
from unicorn.unicorn_py3 import unicorn as binding
from unicorn.unicorn_py3.arch.types import uc_context

from codegen.firmware.boards import Board
from simulator.devices.core_clock import CoreClock, clock_callback
from simulator.machines.board_memory import FlashContent
from simulator.machines.elf_image import ElfImage
from simulator.machines.unicorn_core import INVALID_ACCESS, UnicornCore, check

READABLE = unicorn_const.UC_PROT_READ
WRITABLE = READABLE | unicorn_const.UC_PROT_WRITE
EXECUTABLE = READABLE | unicorn_const.UC_PROT_EXEC
_LAST_ADDRESS = 0xFFFFFFFF
_Key: TypeAlias = tuple[str, tuple[tuple[int, bytes], ...]]


@dataclass(frozen=True)
class Mapping:
    """Memory of this process where the core sees it."""

    address: int
    size: int
    start: int
    """Where this process has the bytes."""
    permissions: int


@dataclass(frozen=True)
class FlashPart:
    """A part of the internal flash."""

    address: int
    size: int
    shared: int | None
    """Where this process has what all boards have there; None: each has its own."""


class Player(Protocol):
    """A board that takes turns."""

    clock: CoreClock
    hooks: dict[int, tuple[int, Any]]
    """By handle: kind and callback of what is called in this board's turns only."""

    def mappings(self) -> Iterable[Mapping]:
        """All memory that its core sees."""
        ...

    def read_register_of(self, peripheral: int, offset: int, size: int) -> int:
        """The core reads from a peripheral."""
        ...

    def write_register_of(self, peripheral: int, offset: int, size: int, value: int) -> None:
        """The core writes to a peripheral."""
        ...

    def invalid_access(self, kind: int, address: int, size: int, value: int) -> bool:
        """The memory refuses an access of the core; whether it is made all the same."""
        ...

    def exception(self, number: int) -> None:
        """The core takes an exception of Unicorn's."""
        ...


class BoardEngine(UnicornCore):
    """A core with the peripherals of a board, and the memory of the one whose turn it is."""

    _open: ClassVar[dict[_Key, BoardEngine]] = {}

    def __init__(
        self, board: Board, peripherals: Iterable[tuple[int, int]], image: ElfImage | None = None
    ) -> None:
        """``peripherals``: (address, bytes) of each. The whole pages of ``image`` are shared.

        Raises: ImageError where Unicorn refuses something.
        """
        super().__init__()
        self._player: Player | None = None
        self._registers: dict[int, uc_context | None] = {}  # None: as after a reset
        self._mapped: dict[int, Mapping] = {}
        self._installed: list[int] = []
        self._key: _Key | None = None
        self._content = FlashContent(board, image) if image is not None else None
        self.flash = tuple(self._flash_parts(board, image))
        self._open_core(board.cpu)
        sram = board.sram
        self._keep_data_apart(sram.address, sram.bytes)
        invalid = binding.HOOK_MEM_INVALID_CFUNC(self._invalid_access)
        for addresses in (0, sram.address - 1), (sram.address + sram.bytes, _LAST_ADDRESS):
            self._keep_hook(INVALID_ACCESS, invalid, addresses=addresses)
        self._clock = ctypes.c_void_p()
        self._keep_hook(
            unicorn_const.UC_HOOK_BLOCK, clock_callback(), context=ctypes.addressof(self._clock)
        )
        self._keep_hook(unicorn_const.UC_HOOK_INTR, binding.HOOK_INTR_CFUNC(self._exception))
        for index, place in enumerate(peripherals):
            self._map_peripheral(index, *place)
        self._after_reset = self._new_context()

    @classmethod
    def shared(
        cls, board: Board, peripherals: Iterable[tuple[int, int]], image: ElfImage
    ) -> BoardEngine:
        """The one of this process for such boards with this image.

        Raises: ImageError where Unicorn refuses something.
        """
        key = board.model_dump_json(), image.segments
        engine = cls._open.get(key)
        if engine is None:
            engine = cls._open[key] = cls(board, peripherals, image)
            engine._key = key
        return engine

    # --- Turns ---------------------------------------------------------------------------------

    def join(self, player: Player) -> None:
        """Take turns from now on, with a core that has been reset."""
        self._registers[id(player)] = None

    def leave(self, player: Player) -> None:
        """Take no more turns; the last one closes the engine. May be called again."""
        if id(player) not in self._registers:
            return
        if self._player is player:
            self._end_turn()
            self._unmap(self._own_mappings())
        context = self._registers.pop(id(player))
        if context is not None:
            binding.uclib.uc_context_free(context)
        if not self._registers:
            self._close()

    def turn_of(self, player: Player) -> Any:
        """Unicorn's handle, with the registers and the memory of this player behind it."""
        if self._player is not player:
            self._end_turn()
            self._player = player
            self.map_memory_of(player)
            context = self._registers[id(player)] or self._after_reset
            check(binding.uclib.uc_context_restore(self._handle, context), "context")
            self._clock.value = player.clock.address
            self._install_hooks()
        return self._handle

    def reset(self, player: Player) -> None:
        """Registers are as after a reset, and nothing that the player may have changed is kept."""
        self.turn_of(player)
        self._uninstall_hooks()
        player.hooks.clear()
        self._unmap(self._own_mappings())
        self.map_memory_of(player)
        check(binding.uclib.uc_context_restore(self._handle, self._after_reset), "context")

    def map_memory_of(self, player: Player) -> None:
        """Let the core see what the player's ``mappings`` tell, if it is its turn."""
        if self._player is not player:
            return
        wanted = {mapping.address: mapping for mapping in player.mappings()}
        self._unmap([one for one in self._mapped.values() if one.address not in wanted])
        for address, mapping in wanted.items():
            there = self._mapped.get(address)
            if there == mapping:
                continue
            if there is not None and there.start == mapping.start:
                self._protect_memory(address, mapping.size, mapping.permissions)
            else:
                self._unmap([there] if there is not None else [])
                self._map_memory(address, mapping.size, mapping.start, mapping.permissions)
            self._mapped[address] = mapping

    def hooks_changed(self, player: Player) -> None:
        """The player's ``hooks`` have: translations start afresh."""
        if self._player is player:
            self._uninstall_hooks()
            self._install_hooks()

    def code_changed(self, player: Player) -> None:
        """Somebody has written to memory of the player that may hold code."""
        if self._player is player:
            self.map_memory_of(player)
            self.flush_translations()

    def _end_turn(self) -> None:
        player = self._player
        if player is None:
            return
        self._uninstall_hooks()
        self._player = None
        context = self._registers[id(player)]
        if context is None:
            self._registers[id(player)] = self._new_context()
        else:
            check(binding.uclib.uc_context_save(self._handle, context), "context")

    def _own_mappings(self) -> list[Mapping]:
        shared = {part.shared for part in self.flash}
        return [one for one in self._mapped.values() if one.start not in shared]

    def _unmap(self, mappings: Iterable[Mapping]) -> None:
        for mapping in mappings:
            self._unmap_memory(mapping.address, mapping.size)
            del self._mapped[mapping.address]

    def _install_hooks(self) -> None:
        assert self._player is not None
        for kind, callback in self._player.hooks.values():
            self._installed.append(self._keep_hook(kind, callback))
        if self._installed:
            self.flush_translations()

    def _uninstall_hooks(self) -> None:
        for handle in self._installed:
            self.remove_hook(handle)
        self._installed.clear()

    def _new_context(self) -> uc_context:
        """The registers as they are."""
        context = uc_context()
        check(binding.uclib.uc_context_alloc(self._handle, ctypes.byref(context)), "context")
        check(binding.uclib.uc_context_save(self._handle, context), "context")
        return context

    def _close(self) -> None:
        binding.uclib.uc_context_free(self._after_reset)
        self._close_core()
        if self._content is not None:
            self._content.close()
        if self._key is not None:
            self._open.pop(self._key, None)

    # --- Parts ---------------------------------------------------------------------------------

    def _flash_parts(self, board: Board, image: ElfImage | None) -> Iterator[FlashPart]:
        """Pages that lie in the image as a whole are shared; a board can't program them."""
        page, at = mmap.PAGESIZE, board.flash.address
        for start, data in sorted(image.segments) if image is not None else ():
            first, end = -(-start // page) * page, (start + len(data)) // page * page
            if self._content is None or first >= end:
                continue
            if first > at:
                yield FlashPart(at, first - at, None)
            content = self._content.start_of("internal") + first - board.flash.address
            yield FlashPart(first, end - first, content)
            at = end
        yield FlashPart(at, board.flash.address + board.flash.bytes - at, None)

    def _map_peripheral(self, index: int, base: int, size: int) -> None:
        def read(engine: Any, offset: int, size: int, _: Any) -> int:
            assert self._player is not None
            return self._player.read_register_of(index, offset, size)

        def write(engine: Any, offset: int, size: int, value: int, _: Any) -> None:
            assert self._player is not None
            self._player.write_register_of(index, offset, size, value)

        callbacks = binding.MMIO_READ_CFUNC(read), binding.MMIO_WRITE_CFUNC(write)
        self._callbacks.extend(callbacks)
        status = binding.uclib.uc_mmio_map(
            self._handle,
            base,
            size,
            ctypes.cast(callbacks[0], ctypes.c_void_p),
            None,
            ctypes.cast(callbacks[1], ctypes.c_void_p),
            None,
        )
        check(status, "peripheral")

    def _invalid_access(
        self, engine: Any, kind: int, address: int, size: int, value: int, _: Any
    ) -> bool:
        assert self._player is not None
        return self._player.invalid_access(kind, address, size, value)

    def _exception(self, engine: Any, number: int, _: Any) -> None:
        assert self._player is not None
        self._player.exception(number)
