"""The seed of one device in a round, so that no two devices round their updates alike."""

from __future__ import annotations

import hashlib

from fleet.protocol import fields


def device_seed(round_seed: int, device: str) -> int:
    """What the task of ``device`` says as its seed (wire.md), 32 bits.

    A shared seed would make the rounding errors of a cohort equal, and their mean no smaller.
    """
    fields.SEED("task", "seed", round_seed)
    fields.name("task", "device", device)
    text = f"tinyfleet-device-seed/{round_seed}/{device}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
