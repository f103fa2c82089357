"""Deployments that are started where others use the machine as well."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fleet.errors import ServiceError
from fleet.service import deployment

TRIES = 5
"""`up` gives up after two minutes, which a machine with much else to do can take."""


def start(folder: Path) -> None:
    """As `deployment.up`, which goes on where it gave up."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(ServiceError):
            deployment.up(folder)
            return
    deployment.up(folder)
