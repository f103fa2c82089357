"""Seeds of devices: the ones of wire.md, and no two alike."""

from __future__ import annotations

import hashlib

import pytest

from fleet.errors import ProtocolError
from fleet.protocol import device_seed


def test_the_seed_is_the_one_of_the_specification() -> None:
    text = b"tinyfleet-device-seed/1234/cow-7"
    assert device_seed(1234, "cow-7") == int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def test_devices_and_rounds_have_seeds_of_their_own() -> None:
    seeds = {device_seed(seed, f"device-{n}") for seed in range(10) for n in range(100)}
    assert len(seeds) == 1000


@pytest.mark.parametrize(("seed", "device"), [(-1, "a"), (2**32, "a"), (0, "a/b"), (0, "")])
def test_what_is_no_seed_or_no_name_is_refused(seed: int, device: str) -> None:
    with pytest.raises(ProtocolError):
        device_seed(seed, device)
