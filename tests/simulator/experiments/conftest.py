from __future__ import annotations

from pathlib import Path

import pytest

from simulator.experiments import FinishedRun, run
from tests.simulator.experiments import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of the tiny experiment; nobody changes it."""
    out = tmp_path_factory.mktemp("experiment") / "tiny"
    run(tiny.source(), out)
    return out


@pytest.fixture(scope="session")
def build(finished: Path) -> Path:
    """Firmware for the tiny experiment."""
    return finished / "build"


@pytest.fixture
def result(finished: Path) -> FinishedRun:
    return FinishedRun.read(finished, "tiny")
