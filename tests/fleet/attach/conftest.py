from __future__ import annotations

import pytest

from codegen.firmware.bundle import Bundle
from fleet.demo.digits import example_folder
from fleet.firmware import compile_firmware


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The firmware that ships, with the model of the example."""
    example = example_folder()
    return compile_firmware(
        example / "digits.onnx",
        "stm32f407",
        [],
        example / "calibration.npz",
        tmp_path_factory.mktemp("bundle") / "digits",
    )
