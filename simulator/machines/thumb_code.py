"""The few instructions that the emulated core has to recognize (Armv7-M reference manual, A5)."""

from __future__ import annotations

_WFI, _WFI_WIDE = b"\x30\xbf", b"\xaf\xf3\x03\x80"
# Mask and value of the first halfword of stores of words: immediate offset, register offset,
# SP-relative, multiple; wide with either immediate or a register; double.
_STORES = (
    (0xF800, 0x6000),
    (0xFE00, 0x5000),
    (0xF800, 0x9000),
    (0xF800, 0xC000),
    (0xFFF0, 0xF840),
    (0xFFF0, 0xF8C0),
    (0xFE50, 0xE840),
)


def is_store(halfword: int) -> bool:
    """Whether an instruction that begins with ``halfword`` stores words."""
    return any(halfword & mask == wanted for mask, wanted in _STORES)


def ends_in_wfi(code: bytes) -> bool:
    """Whether the last instruction of ``code`` is ``wfi``, narrow or wide."""
    return code.endswith((_WFI, _WFI_WIDE))
