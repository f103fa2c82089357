"""Builds the one compiled file of tinyfleet, what pyproject.toml can't say: the delta decoder.

A gateway decodes deltas with the device's own C (``device_runtime/codec``), as a shared library
that ``fleet.protocol.delta_library`` loads with ctypes. It knows nothing of Python, so one wheel
per platform serves every Python 3, and no Python headers are needed. Any C compiler builds it,
else zig; where neither is there the package is built without, and decodes with numpy.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ZIG = "ziglang>=0.13"
# Unlike other compilers zig makes code for the processor that it runs on, unless told otherwise.
ZIG_COMMAND = [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]
DECODER = Extension(
    "fleet.protocol._delta_decoder",
    [f"device_runtime/codec/delta_{part}.c" for part in ("decode", "parameter")],
    include_dirs=["device_runtime/include"],
    depends=[
        "device_runtime/codec/delta_format.h",
        "device_runtime/include/tinyfleet/delta_code.h",
        "device_runtime/include/tinyfleet/status.h",
    ],
    optional=True,  # a failure is no end: there is numpy
)

IGNORED = shutil.ignore_patterns("__pycache__", "models", "out")


def compilers() -> list[list[str]]:
    """The C compilers of this machine, the one to be tried first in front."""
    named = shlex.split(os.environ.get("CC", ""))
    usual = [[name] for name in ("cc", "gcc", "clang")]
    return [command for command in [named, *usual] if command and shutil.which(command[0])]


class BuildLibrary(build_ext):
    """Builds shared libraries without Python in them."""

    def get_ext_filename(self, fullname: str) -> str:
        """The same for every Python: nothing but the platform matters."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """With the first compiler that can."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c99", "-O3", "-fPIC", "-shared", *(f"-I{path}" for path in ext.include_dirs)]
        for compiler in [*compilers(), ZIG_COMMAND]:
            command = [*compiler, *flags, *ext.sources, "-o", str(target)]
            self.announce(shlex.join(command), level=2)
            if subprocess.run(command, check=False).returncode == 0:
                return
        self.warn(f"no C compiler builds {ext.name}: deltas will be decoded with numpy, slowly")


class BuildPython(build_py):
    """Modules, and beside them the examples, which lie outside of any module."""

    def run(self) -> None:
        """An editable installation finds them in its checkout."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "fleet" / "_examples"
            shutil.copytree("examples", target, dirs_exist_ok=True, ignore=IGNORED)


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform's own tag behind what holds for all."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[DECODER],
    cmdclass={"build_ext": BuildLibrary, "build_py": BuildPython, "bdist_wheel": PlatformWheel},
    # Where there is a compiler, zig need not be downloaded to build.
    setup_requires=[] if compilers() else [ZIG],
)
