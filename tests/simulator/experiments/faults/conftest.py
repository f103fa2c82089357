from pathlib import Path

import pytest

from simulator.experiments.faults.scene import firmware_for_search
from simulator.virtual.population import Firmware

EXAMPLE = Path(__file__).parents[4] / "examples" / "digits"


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return firmware_for_search(EXAMPLE, tmp_path_factory.mktemp("build"))
