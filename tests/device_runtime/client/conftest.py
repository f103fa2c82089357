from __future__ import annotations

import ctypes

import pytest

from ..host_device import WIDE, World, build_library
from ..tiny_round import clustered_data
from .rounds import make_world


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="session")
def wide_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The model with 20 KB of weights and 10,244 values in a delta."""
    return build_library(tmp_path_factory.mktemp("wide"), WIDE)


@pytest.fixture
def world(library: ctypes.CDLL) -> World:
    return make_world(library)


@pytest.fixture
def wide_world(wide_library: ctypes.CDLL) -> World:
    return make_world(wide_library, clustered_data(inputs=WIDE.inputs), WIDE)
