"""What one version of the weights takes on a device's serial line."""

from __future__ import annotations

import pytest

from benchmarks import downlink

MCUNET_49KB, DIGITS_MIDDLE = 49_256, 13_000


@pytest.mark.parametrize("length", [6, 32])
def test_a_version_of_mcunet_takes_less_than_60_000_bytes_whatever_the_names(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLEET", "DEVICE", "GATEWAY"):
        monkeypatch.setattr(downlink, name, "n" * length)
    assert MCUNET_49KB < downlink.bytes_down(MCUNET_49KB) <= 60_000
    assert DIGITS_MIDDLE < downlink.bytes_down(DIGITS_MIDDLE) <= 16_000


def test_a_chunk_more_costs_its_packet_and_a_group_more_its_two_answers() -> None:
    within, next_group = (
        downlink.bytes_down(512 * (chunks + 1)) - downlink.bytes_down(512 * chunks)
        for chunks in (1, 32)
    )
    # 1 + 2 of length + 2 + 36 of topic + 2 of identifier + 1 + 5 of expiry + 512 + 4 of CRC
    assert within == 565
    assert next_group == within + 1 + 2 * 6  # its number has two digits
