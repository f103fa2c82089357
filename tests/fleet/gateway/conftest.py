from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fleet.gateway.site import Site


@pytest.fixture
def make_site() -> Iterator[Callable[[list[str]], Site]]:
    # Not tmp_path: its name can be too long for a unix socket.
    sites: list[Site] = []
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:

        def make(names: list[str]) -> Site:
            place = Path(folder) / str(len(sites))
            place.mkdir()
            site = Site(place, names)
            sites.append(site)
            site.start_gateway()
            return site

        yield make
        for site in sites:
            site.close()
