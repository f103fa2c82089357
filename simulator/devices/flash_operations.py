"""What the flashes of a board have in common: counted operations, power cuts, broken rules.

Programming a word and erasing a sector both count as one *flash operation*, in whichever flash of
the board; an armed cut tears one of them in a way drawn from its seed: nothing, a part, or all of
it has happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class FlashMisuse(Exception):
    """The firmware broke a rule of a flash; becomes a machine fault."""


class PowerCut:
    """Counts the flash operations of a machine and takes its power away in one of them."""

    def __init__(self, cut: Callable[[], None]) -> None:
        """``cut`` is called when the power goes."""
        self.operations = 0
        self._cut = cut
        self._cut_in = 0
        self._random = random.Random(0)

    def arm(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th operation from now (1: the next); 0 disarms."""
        self._cut_in = operations
        self._random = random.Random(f"power cut {seed}")

    @property
    def is_armed(self) -> bool:
        """Whether an operation to come is cut."""
        return self._cut_in > 0

    def programmed(self, old: bytes, wanted: bytes) -> tuple[bool, bytes]:
        """Whether programming ``wanted`` over ``old`` goes through, and the bytes that result.

        Programming can only clear bits.
        """
        before = int.from_bytes(old, "little")
        after = before & int.from_bytes(wanted, "little")
        goes_through = not self._next_is_cut()
        if not goes_through:
            how = self._random.randrange(4)
            if how == 0:
                after = before
            elif how >= 2:
                after |= before & self._random.getrandbits(8 * len(old))
            self._cut()
        return goes_through, after.to_bytes(len(old), "little")

    def erased(self, old: bytes) -> bytes:
        """What erasing a sector that held ``old`` leaves."""
        after = b"\xff" * len(old)
        if self._next_is_cut():
            how = self._random.randrange(4)
            if how == 0:
                after = old
            elif how >= 2:
                torn = int.from_bytes(old, "little") | self._random.getrandbits(8 * len(old))
                after = torn.to_bytes(len(old), "little")
            self._cut()
        return after

    def _next_is_cut(self) -> bool:
        self.operations += 1
        if self._cut_in == 0:
            return False
        self._cut_in -= 1
        return self._cut_in == 0
