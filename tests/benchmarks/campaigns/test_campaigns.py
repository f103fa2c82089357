"""The benchmark of campaigns: a small deployment, of which everything is counted once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from benchmarks.campaigns.__main__ import compiled, measure
from fleet.coordinator.settings import PaceSettings


@pytest.mark.slow
def test_every_delta_of_two_campaigns_is_counted_once() -> None:
    # Not tmp_path: its name can be too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as name:
        folder = Path(name)
        figures = measure(folder, compiled(folder), 40, 2, 1, 0.0, PaceSettings())
    assert figures["problems"] == []
    assert figures["rounds_in_all"] == 2 * 3
    assert figures["deltas_counted"] == 40 * 3
    assert figures["messages"] > 0
    assert figures["cpu_seconds"]["gateway"] > 0.0
    assert figures["overhead_seconds"]["median"] > 0.0
