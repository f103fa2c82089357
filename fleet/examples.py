"""The examples of the repository, which an installed package has within it."""

from __future__ import annotations

from pathlib import Path

from fleet.errors import ConfigurationError

_HERE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Folder of an example: the package's or the checkout's. Raises: ConfigurationError."""
    for place in (_HERE / "_examples", _HERE.parent / "examples"):
        if (place / name).is_dir():
            return place / name
    raise ConfigurationError(f"there is no example {name!r} in {_HERE}; install tinyfleet anew")
