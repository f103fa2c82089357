"""The few instructions that the emulated core has to recognize (Armv7-M reference manual, A5)."""

from __future__ import annotations

_WFI, _WFI_WIDE = b"\x30\xbf", b"\xaf\xf3\x03\x80"


def ends_in_wfi(code: bytes) -> bool:
    """Whether the last instruction of ``code`` is ``wfi``, narrow or wide."""
    return code.endswith((_WFI, _WFI_WIDE))
