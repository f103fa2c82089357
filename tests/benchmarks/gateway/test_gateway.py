"""The benchmark of the gateway: what it says of its own devices is true."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gateway.__main__ import measure
from benchmarks.gateway.deltas import Deltas
from fleet.protocol import delta_coding

FIGURES = {
    "devices",
    "deltas_per_second",
    "gateway_cpu_ms_per_delta",
    "broker_cpu_ms_per_delta",
    "broker_bytes_written_per_delta",
    "gateway_rss_bytes",
    "control_bytes_max",
    "lost",
    "doubled",
}


def test_wanted_sum_is_that_of_the_deltas_that_the_devices_send() -> None:
    deltas, count = Deltas(100), 50
    total, weight = np.zeros(100, np.int64), 0
    for device in range(count):
        samples = deltas.samples(device, 3)
        total += samples * delta_coding.decode(deltas.coded(device, 3).data, 100)
        weight += samples
    assert deltas.sum(range(count), 3) == (total.astype("<i8").tobytes(), weight)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_gateway_and_broker_are_killed() -> None:
    # Not tmp_path: its name can be too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:
        figures = measure(devices=60, values=300, rounds=3, kill=True, folder=Path(folder))
    assert figures.keys() >= FIGURES
    assert figures["killed"] == ["gateway", "broker"]
    assert figures["reconnections"] >= 60
    assert (figures["lost"], figures["doubled"], figures["wrong_sums"]) == (0, 0, 0)
    assert figures["deltas_sent"] >= 180
