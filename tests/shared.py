"""Models and samples that lie outside of the repository: tests read them where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TINYFLEET_SHARED", Path(__file__).parents[2] / "shared"))


def needs(*files: Path) -> pytest.MarkDecorator:
    """Skips a test where one of ``files`` isn't there."""
    missing = ", ".join(str(path) for path in files if not path.exists())
    return pytest.mark.skipif(
        bool(missing), reason=f"no {missing}; set TINYFLEET_SHARED to the shared folder"
    )
