import pytest

from fleet.demo.digits import example_folder
from simulator.experiments.faults.scene import firmware_for_search
from simulator.virtual.population import Firmware


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return firmware_for_search(example_folder(), tmp_path_factory.mktemp("build"))
