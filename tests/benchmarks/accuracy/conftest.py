"""Studies in tests keep nothing outside of the tests' folders."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = pytest.importorskip("benchmarks.accuracy.frozen", reason="needs PyTorch")
    monkeypatch.setattr(frozen, "CACHE", tmp_path / "frozen")
