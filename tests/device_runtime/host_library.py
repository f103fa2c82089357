"""Builds C sources into a shared library for ctypes, with traps for undefined behaviour."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "device_runtime"


def build_library(
    folder: Path, ours: Iterable[Path], foreign: Iterable[Path] = (), flags: Iterable[str] = ()
) -> ctypes.CDLL:
    """`ours` compile with warnings as errors, `foreign` (zcbor's code) without warnings."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) here; install gcc or clang")
    objects = []
    command = [compiler, "-std=c99", "-O1", "-g", "-fPIC", "-c", "-I", str(RUNTIME / "include")]
    command += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    for sources, extra in ((ours, warnings), (foreign, ["-w"])):
        for source in sources:
            target = folder / f"{source.stem}.o"
            subprocess.run(
                [*command, *extra, *flags, str(source), "-o", str(target)],
                check=True,
            )
            objects.append(str(target))
    library = folder / "library.so"
    subprocess.run([compiler, "-shared", *objects, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
