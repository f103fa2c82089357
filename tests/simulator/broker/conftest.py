from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from .peers import Mosquitto, Peer, Site, Virtual

_numbers = itertools.count()


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One process for all tests."""
    if Mosquitto.version() != "2.0.11":
        pytest.skip("the broker in virtual time behaves as Mosquitto 2.0.11, which isn't here")
    mosquitto = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    yield mosquitto
    mosquitto.close()


@pytest.fixture
def virtual() -> Virtual:
    return Virtual()


@pytest.fixture(params=["virtual", "mosquitto"])
def peer(request: pytest.FixtureRequest) -> Peer:
    peer: Peer = request.getfixturevalue(request.param)
    return peer


@pytest.fixture
def site(peer: Peer) -> Iterator[Site]:
    """A part of a broker that no other test meets."""
    site = Site(peer, f"test{next(_numbers)}")
    yield site
    site.close()
