"""Studies in tests keep nothing outside of the tests' folders."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.accuracy.frozen.CACHE", tmp_path / "frozen")
