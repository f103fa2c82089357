from __future__ import annotations

import pytest

from simulator.virtual.population import Firmware
from tests.simulator.virtual import small_fleet


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Firmware]:
    """Firmware of the small fleet."""
    return small_fleet.firmware(tmp_path_factory.mktemp("firmware"))
