"""A firmware ELF: what goes where in flash, and which function an address belongs to."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from simulator.errors import ImageError


@dataclass(frozen=True, eq=False)
class ElfImage:
    """Loadable segments and symbols of a firmware image."""

    path: str
    segments: tuple[tuple[int, bytes], ...]
    """(load address, bytes), as the programmer writes them to flash."""
    symbols: dict[str, tuple[int, int]]
    """Name → (address without the Thumb bit, size in bytes)."""
    _functions: tuple[tuple[int, str, int], ...]
    """By address: (address, name, size). Static functions may share a name."""

    def address_of(self, name: str) -> int:
        """Address of a symbol.

        Raises: ImageError when the image doesn't have it.
        """
        try:
            return self.symbols[name][0]
        except KeyError:
            raise ImageError(
                f"{self.path} has no symbol {name!r}; build it unstripped and keep the function"
            ) from None

    def function_at(self, address: int) -> str:
        """Name of the function that holds ``address``, or an empty string."""
        return self._place_of(address)[0]

    def locate(self, address: int) -> str:
        """``function+0x12`` for messages."""
        name, offset = self._place_of(address)
        return f"{name}+{offset:#x}" if name else "outside any function"

    def _place_of(self, address: int) -> tuple[str, int]:
        """Function and offset in it; an empty name outside of all."""
        index = bisect.bisect_right(self._functions, address, key=lambda function: function[0])
        if index == 0:
            return "", 0
        start, name, size = self._functions[index - 1]
        # Assembly without .size has none: it reaches to the next function.
        return (name, address - start) if size == 0 or address < start + size else ("", 0)


@functools.lru_cache(maxsize=16)
def _load(path: str, stamp: tuple[int, int]) -> ElfImage:
    del stamp
    segments: list[tuple[int, bytes]] = []
    symbols: dict[str, tuple[int, int]] = {}
    functions: set[tuple[int, str, int]] = set()
    try:
        with open(path, "rb") as file:
            elf = ELFFile(file)
            if elf.get_machine_arch() != "ARM" or elf.elfclass != 32:
                raise ImageError(f"{path} is no 32-bit ARM image; compile it for a board")
            for segment in elf.iter_segments():
                if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]:
                    segments.append((int(segment["p_paddr"]), bytes(segment.data())))
            for section in elf.iter_sections():
                if not isinstance(section, SymbolTableSection):
                    continue
                for symbol in section.iter_symbols():
                    kind = symbol["st_info"]["type"]
                    defined = symbol["st_shndx"] != "SHN_UNDEF"
                    if not symbol.name or not defined or symbol.name.startswith("$"):
                        continue
                    address, size = int(symbol["st_value"]), int(symbol["st_size"])
                    if kind == "STT_FUNC":
                        address &= ~1
                        functions.add((address, symbol.name, size))
                    elif kind not in ("STT_OBJECT", "STT_NOTYPE"):
                        continue
                    symbols.setdefault(symbol.name, (address, size))
    except (ELFError, OSError) as error:
        raise ImageError(f"can't read the image {path}: {error}; compile it again") from error
    return ElfImage(path, tuple(segments), symbols, tuple(sorted(functions)))


def load_elf(path: Path | str) -> ElfImage:
    """Read an image; the result is shared between machines of one process.

    Raises: ImageError for a file that is no ARM ELF.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ImageError(f"can't read the image {path}: {error.strerror}") from error
    return _load(str(path), (status.st_mtime_ns, status.st_size))
