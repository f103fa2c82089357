"""Compilers for boards: the same C for Cortex-M, with GCC or zig.

``arm-none-eabi-gcc`` is taken where it is installed, else the ``ziglang`` package from PyPI. The
environment variable ``TINYFLEET_COMPILER`` (``gcc`` or ``zig``) overrides.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from codegen.errors import ToolchainError
from codegen.firmware.boards import Board
from codegen.host_toolchain import (
    BuildResult,
    Compiler,
    Defines,
    Progress,
    Source,
    result_of,
    version_of,
    zig_command,
)

_ZIG_FEATURES = {
    "fpv4-sp-d16": "+vfp4d16sp",
    "fpv5-sp-d16": "+fp_armv8d16sp",
    "fpv5-d16": "+fp_armv8d16",
    "none": "",
}


def freestanding_folder() -> Path:
    """Headers and memory functions for builds without a C library."""
    return Path(str(resources.files("codegen.firmware") / "freestanding"))


class Toolchain(Compiler):
    """A compiler for boards: of the kind ``gcc`` or ``zig``."""

    def build(
        self,
        sources: Sequence[Source | Path],
        *,
        include_dirs: Sequence[Path],
        defines: Defines,
        board: Board,
        linker_script: Path,
        output_elf: Path,
        progress: Progress | None = None,
    ) -> BuildResult:
        """Compiles and links an image for ``board``.

        The memory functions of ``freestanding/`` and the compiler's integer division are added.
        Raises ToolchainError with the compiler's first error, LinkError with the linker's.
        """
        freestanding = freestanding_folder()
        units = [*sources, Source(freestanding / "memory.c", flags=("-fno-builtin",))]
        target = self._target_flags(board)
        objects = self.objects(
            units,
            [*include_dirs, freestanding],
            {**defines, **board_defines(board)},
            (*target, "-ffreestanding"),
            progress,
        )
        command = [*self.command, *target, *(str(item.path) for item in objects)]
        command += [
            f"-Wl,-T,{linker_script}",
            "-Wl,--entry=Reset_Handler",
            "-Wl,--gc-sections",
            "-g0",
            "-O2",
        ]
        if self.kind == "gcc":
            command += ["-nostdlib", "-nostartfiles", "-Wl,--fatal-warnings", "-Wl,--build-id=none"]
            command += ["-Wl,--no-warn-rwx-segments", "-lgcc"]
        self.link(command, output_elf)
        return result_of(output_elf, objects)

    def _target_flags(self, board: Board) -> tuple[str, ...]:
        if self.kind == "gcc":
            fpu = [f"-mfpu={board.fpu}", "-mfloat-abi=hard"]
            if board.fpu == "none":
                fpu = ["-mfloat-abi=soft"]
            return (f"-mcpu={board.cpu}{_gcc_extensions(board)}", "-mthumb", *fpu)
        if board.fpu not in _ZIG_FEATURES:
            raise ToolchainError(
                f"board {board.name}: zig has no name for FPU {board.fpu!r}; "
                f"known are {', '.join(sorted(_ZIG_FEATURES))}"
            )
        abi = "eabi" if board.fpu == "none" else "eabihf"
        cpu = board.cpu.replace("-", "_") + _ZIG_FEATURES[board.fpu] + _zig_extensions(board)
        return ("-target", f"thumb-freestanding-{abi}", f"-mcpu={cpu}", "-fno-sanitize=undefined")


def _gcc_extensions(board: Board) -> str:
    """What GCC takes for granted of a core, taken away where the board's has it not."""
    if board.cpu == "cortex-m55" and not board.mve:
        return "+nomve"
    if board.cpu == "cortex-m33" and not board.dsp:
        return "+nodsp"
    return ""


def _zig_extensions(board: Board) -> str:
    """What zig doesn't take for granted of a core."""
    if board.mve:
        return "+mve"
    return "+dsp" if board.cpu == "cortex-m33" and board.dsp else ""


def find_toolchain(prefer: Literal["gcc", "zig"] | None = None) -> Toolchain:
    """The compiler for boards: ``prefer``, else TINYFLEET_COMPILER, else what is installed.

    Raises ToolchainError that says what to install when there is none, or not the wanted one.
    """
    wanted = prefer or os.environ.get("TINYFLEET_COMPILER") or None
    if wanted not in (None, "gcc", "zig"):
        raise ToolchainError(f"TINYFLEET_COMPILER is {wanted!r}; it can be 'gcc' or 'zig'")
    if wanted in (None, "gcc"):
        gcc = shutil.which("arm-none-eabi-gcc")
        if gcc is not None:
            return Toolchain("gcc", (gcc,), version_of((gcc,), "arm-none-eabi-gcc"))
        if wanted == "gcc":
            raise ToolchainError(
                "arm-none-eabi-gcc isn't on the PATH; install it (Debian and Ubuntu: "
                "apt install gcc-arm-none-eabi) or use zig (TINYFLEET_COMPILER=zig)"
            )
    zig = zig_command()
    if zig is None:
        raise ToolchainError(
            "there is no compiler for Cortex-M: install zig (pip install ziglang) or GCC "
            "(Debian and Ubuntu: apt install gcc-arm-none-eabi)"
        )
    return Toolchain("zig", zig, version_of(zig, "zig"))


def board_defines(board: Board) -> dict[str, str | int]:
    """What boards.md says is defined for the compiler."""
    upper = re.sub(r"[^A-Z0-9]", "_", board.name.upper())
    defines: dict[str, str | int] = {
        f"TF_BOARD_{upper}": 1,
        "TF_BOARD_NAME": f'"{board.name}"',
        "TF_CLOCK_HZ": f"{board.clock_hz}u",
        "TF_SRAM_ADDRESS": f"{board.sram.address:#x}u",
        "TF_SRAM_LIMIT_BYTES": f"{board.sram_limit_bytes}u",
        "TF_FLASH_ADDRESS": f"{board.flash.address:#x}u",
        "TF_FLASH_SECTOR_COUNT": len(board.flash.sectors),
        "TF_FLASH_SECTOR_SIZES": "{" + ",".join(f"{size}u" for size in board.flash.sectors) + "}",
    }
    if board.dsp:
        defines["TF_HAVE_DSP"] = 1
    return {**defines, **board.defines}
