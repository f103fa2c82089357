"""What lies in the boot sector besides the vectors.

Where the sectors behind identity and journal don't hold an image, functions of it move to the
sector that it starts in: the largest that fit, then the next, until there is no room for any. Which
functions an image has, and how large they are, is read from one that was linked without limits.
"""

from __future__ import annotations

from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

_SECTION = ".text"
_ALIGNMENT = 16
"""More than functions are aligned to, so that the sum of them is never too small."""
ROOMY_BYTES = 1 << 24
"""Of a firmware region that nothing overflows."""


def fill_boot_sector(elf: Path, sector_bytes: int) -> tuple[str, ...]:
    """Functions of the image ``elf`` that go to its boot sector, which has only the vectors yet."""
    with elf.open("rb") as stream:
        image = ELFFile(stream)
        boot = image.get_section_by_name(".boot")
        table = image.get_section_by_name(".symtab")
        text = [
            index for index, section in enumerate(image.iter_sections()) if section.name == _SECTION
        ]
        room = sector_bytes - (boot["sh_size"] if boot is not None else 0) - _ALIGNMENT
        sizes: dict[str, list[int]] = {}
        # Static functions of one name lie in sections of one name, which go together.
        symbols = table.iter_symbols() if isinstance(table, SymbolTableSection) else ()
        for symbol in symbols:
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] in text:
                sizes.setdefault(symbol.name, []).append(int(symbol["st_size"]))
    taken: list[str] = []
    for name, each in sorted(sizes.items(), key=lambda item: (-sum(item[1]), item[0])):
        largest = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in each)
        if 0 < largest <= room:
            taken.append(name)
            room -= largest
    return tuple(sorted(taken))
