"""Folders that are made whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fleet.errors import ConflictError


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """A folder to fill, absent or empty before, and again where the block fails.

    Raises `ConflictError` where something is in it, or somebody else fills it at the moment.
    """
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _hold(descriptor, folder)
        there = next(folder.iterdir(), None)
        if there is not None:
            raise ConflictError(f"{folder} has {there.name} already: nothing is written over")
        try:
            yield
        except BaseException:
            _empty(folder)
            if not was_there:
                folder.rmdir()
            raise
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    """For this process, whatever becomes of it; else a second one would remove what is ours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConflictError(f"{folder} is being made by another process") from None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
