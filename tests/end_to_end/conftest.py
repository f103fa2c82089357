"""A small fleet of emulated boards with all its real services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.attach.samples import deal_digits
from fleet.demo.digits import BOARDS, device_names, example_folder, population
from fleet.demo.orchestrator import assign_gateways, wait_online
from fleet.demo.site import Site
from fleet.firmware import compile_firmware

SEED = 3
DEVICES = device_names(4)


class Quiet:
    """Nobody watches."""

    def phase(self, name: str, done: int, of: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Firmware with the two small plans for both boards, by board."""
    example, folder = example_folder(), tmp_path_factory.mktemp("bundles")
    return {
        board: compile_firmware(
            example / "digits.onnx",
            board,
            [f"{example / 'plans.json'}#{plan}" for plan in ("small", "middle")],
            example / "calibration.npz",
            folder / board,
        ).path
        for board in BOARDS
    }


@pytest.fixture
def site(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Site]:
    """Four devices at two gateways, all of them online."""
    # Dealt to 24, so that each has about 50 samples and a round takes seconds.
    shares = deal_digits(device_names(24), SEED)[: len(DEVICES)]
    with Site(assign_gateways(DEVICES, ("gw-1", "gw-2")), tmp_path / "logs") as running:
        running.boot(population(shares, bundles, running.device_passwords, SEED))
        wait_online(running, DEVICES, Quiet())
        yield running
