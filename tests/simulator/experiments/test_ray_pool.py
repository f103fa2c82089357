"""A Ray cluster on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.errors import FleetError
from simulator.experiments.workers import pool_with
from simulator.virtual.population import Population
from tests.simulator.experiments import tiny

ray = pytest.importorskip("ray", reason="ray isn't installed: pip install 'tinyfleet[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _no_cluster_is_left() -> Iterator[None]:
    yield
    ray.shutdown()


def test_a_cluster_gives_what_one_process_gives(
    finished: Path, build: Path, tmp_path: Path
) -> None:
    assert tiny.cell(tmp_path, build, workers="ray/2") == tiny.kept_cell(finished)


def test_a_machine_that_lacks_the_firmware_is_told_of(build: Path, tmp_path: Path) -> None:
    from simulator.experiments.setting import build_firmware

    config = tiny.source().config
    made = build_firmware(config, Path(), build, lambda *_: None)
    missing = {
        board: type(one)(one.bundle, tmp_path / "host.so", one.costs) for board, one in made.items()
    }
    with pytest.raises(FleetError, match=r"doesn't have .*host\.so"):
        pool_with("ray/2")(Population(config.world, 7, Path(), missing))
