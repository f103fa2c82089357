"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file by way of a new one beside it, which takes its place in one step.

    Where the disk is full nothing of it stays.
    """
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # of one that a kill had left behind
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
