"""Models that are attacked, compiled once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.privacy.victims import Victim, convolutional, dense


@pytest.fixture(scope="session")
def demo() -> Iterator[Victim]:
    """The demo's network."""
    with convolutional() as made:
        yield made


@pytest.fixture(scope="session")
def layered() -> Iterator[Victim]:
    """The one whose first layer is fully connected."""
    with dense() as made:
        yield made
