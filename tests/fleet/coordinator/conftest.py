from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.coordinator.staged_fleet import StagedFleet


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StagedFleet]:
    # Paths of sockets are short.
    monkeypatch.chdir(tmp_path)
    one = StagedFleet(Path())
    yield one
    one.close()
