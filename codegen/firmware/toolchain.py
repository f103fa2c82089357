"""Compilers: the same C for Cortex-M boards, with GCC or zig, and for the host.

``arm-none-eabi-gcc`` is taken where it is installed, else the ``ziglang`` package from PyPI. The
environment variable ``TINYFLEET_COMPILER`` (``gcc`` or ``zig``) overrides. Objects are cached by
the content of everything that goes into them, under ``TINYFLEET_CACHE`` or the user's cache
folder, so that building the same sources again only links.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Literal

from codegen.errors import ToolchainError
from codegen.firmware.boards import Board

Kind = Literal["gcc", "zig", "host"]
Defines = Mapping[str, str | int]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and of how many."""

PARALLEL_JOBS = 2
CACHED_OBJECTS_AT_MOST = 4000

_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_COMMON = ("-std=c99", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections", "-g0")
_ZIG_FEATURES = {
    "fpv4-sp-d16": "+vfp4d16sp",
    "fpv5-sp-d16": "+fp_armv8d16sp",
    "fpv5-d16": "+fp_armv8d16",
    "none": "",
}
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*[<"]([^">]+)[">]', re.MULTILINE)
_FIRST_ERROR = re.compile(r"error: |undefined (reference|symbol)|will not fit|overflowed")


@dataclass(frozen=True)
class Source:
    """One C file to compile; ``warnings`` is off for code that isn't ours."""

    path: Path
    optimize: str = "-O2"
    warnings: bool = True
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildResult:
    """A linked file, and how many of its objects were compiled for it."""

    output: Path
    compiler: str
    compiled: int
    cached: int


class LinkError(ToolchainError):
    """Linking failed; ``output`` is all that the linker said."""

    def __init__(self, message: str, output: str) -> None:
        """Keeps the linker's words, from which the caller may make a better error."""
        super().__init__(message)
        self.output = output


def cache_folder() -> Path:
    """Where objects are kept: TINYFLEET_CACHE, else ``tinyfleet`` in the user's cache folder."""
    named = os.environ.get("TINYFLEET_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tinyfleet"


def freestanding_folder() -> Path:
    """Headers and memory functions for builds without a C library."""
    return Path(str(resources.files("codegen.firmware") / "freestanding"))


@dataclass(frozen=True)
class Toolchain:
    """A compiler for boards (``gcc``, ``zig``) or for this machine (``host``)."""

    kind: Kind
    command: tuple[str, ...]
    version: str

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
        if self.kind == "host":
            raise ToolchainError("a host compiler can't build firmware; use find_toolchain()")
        freestanding = freestanding_folder()
        units = [_as_source(source) for source in sources]
        units.append(Source(freestanding / "memory.c", flags=("-fno-builtin",)))
        target = self._target_flags(board)
        objects = self._compile(
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
        self._link(command, output_elf)
        return _result(output_elf, self.version, objects)

    def build_host(
        self,
        sources: Sequence[Source | Path],
        *,
        include_dirs: Sequence[Path],
        output: Path,
        defines: Defines | None = None,
        shared: bool = True,
        sanitize: Sequence[str] = (),
        flags: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> BuildResult:
        """Builds a shared library, or a program, for this machine.

        ``sanitize`` names sanitizers ("address", "undefined", "fuzzer"). Raises as ``build``.
        """
        if self.kind != "host":
            raise ToolchainError(
                "a board's compiler can't build for the host; use host_toolchain()"
            )
        extra: list[str] = ["-fPIC", *flags]
        if sanitize:
            extra += [f"-fsanitize={','.join(sanitize)}", "-fno-sanitize-recover=all"]
        elif "zig" in self.version:
            extra += ["-fno-sanitize=undefined"]
        units = [_as_source(source) for source in sources]
        objects = self._compile(units, include_dirs, defines or {}, tuple(extra), progress)
        command = [*self.command, *extra, *(str(item.path) for item in objects)]
        command += ["-shared"] if shared else []
        self._link(command, output)
        return _result(output, self.version, objects)

    def _target_flags(self, board: Board) -> tuple[str, ...]:
        if self.kind == "gcc":
            fpu = [f"-mfpu={board.fpu}", "-mfloat-abi=hard"]
            if board.fpu == "none":
                fpu = ["-mfloat-abi=soft"]
            return (f"-mcpu={board.cpu}", "-mthumb", *fpu)
        if board.fpu not in _ZIG_FEATURES:
            raise ToolchainError(
                f"board {board.name}: zig has no name for FPU {board.fpu!r}; "
                f"known are {', '.join(sorted(_ZIG_FEATURES))}"
            )
        abi = "eabi" if board.fpu == "none" else "eabihf"
        cpu = board.cpu.replace("-", "_") + _ZIG_FEATURES[board.fpu]
        return ("-target", f"thumb-freestanding-{abi}", f"-mcpu={cpu}", "-fno-sanitize=undefined")

    def _compile(
        self,
        sources: Sequence[Source],
        include_dirs: Sequence[Path],
        defines: Defines,
        flags: tuple[str, ...],
        progress: Progress | None,
    ) -> list[_Object]:
        for source in sources:
            if not source.path.is_file():
                raise ToolchainError(f"source file {source.path} is missing; reinstall tinyfleet")
        definitions = [f"-D{name}={value}" for name, value in sorted(defines.items())]
        base = (*_COMMON, *flags, *definitions)
        cache = cache_folder() / "objects"
        counting = Lock()
        done = 0

        def compile_one(source: Source) -> _Object:
            nonlocal done
            made = self._compile_one(source, include_dirs, base, cache)
            with counting:
                done += 1
                if progress is not None:
                    progress("compiling", done, len(sources))
            return made

        with ThreadPoolExecutor(PARALLEL_JOBS) as pool:
            objects = list(pool.map(compile_one, sources))
        _prune(cache)
        return objects

    def _compile_one(
        self, source: Source, include_dirs: Sequence[Path], base: tuple[str, ...], cache: Path
    ) -> _Object:
        options = [*base, source.optimize, *source.flags]
        options += _WARNINGS if source.warnings else ("-w",)
        key = _key([self.kind, *self.command, self.version, *options], source.path, include_dirs)
        target = cache / key[:2] / f"{key}.o"
        if target.is_file():
            os.utime(target)
            return _Object(target, cached=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Compiled under a name of its own and renamed, so that two builds at once, or a killed
        # one, never leave half an object behind.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "unit.o"
            includes = [f"-I{item}" for item in include_dirs]
            command = [*self.command, *options, *includes]
            command += ["-c", str(source.path), "-o", str(made)]
            finished = self._run(command)
            if finished.returncode != 0:
                raise ToolchainError(
                    f"{self.version} can't compile {source.path.name}: {_first_error(finished)}"
                )
            made.replace(target)
        return _Object(target, cached=False)

    def _link(self, command: list[str], output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        finished = self._run([*command, "-o", str(output)])
        if finished.returncode != 0:
            raise LinkError(
                f"{self.version} can't link {output.name}: {_first_error(finished)}",
                finished.stderr + finished.stdout,
            )

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ)
        zig_cache = str(cache_folder() / "zig")
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", zig_cache)
        environment.setdefault("ZIG_LOCAL_CACHE_DIR", zig_cache)
        environment["LC_ALL"] = "C"
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


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
            return Toolchain("gcc", (gcc,), _version((gcc,), "arm-none-eabi-gcc"))
        if wanted == "gcc":
            raise ToolchainError(
                "arm-none-eabi-gcc isn't on the PATH; install it (Debian and Ubuntu: "
                "apt install gcc-arm-none-eabi) or use zig (TINYFLEET_COMPILER=zig)"
            )
    zig = _zig()
    if zig is None:
        raise ToolchainError(
            "there is no compiler for Cortex-M: install zig (pip install ziglang) or GCC "
            "(Debian and Ubuntu: apt install gcc-arm-none-eabi)"
        )
    return Toolchain("zig", zig, _version(zig, "zig"))


def host_toolchain(command: str | None = None) -> Toolchain:
    """The compiler for this machine: ``command`` (such as "clang"), else ``cc``, else zig.

    Raises ToolchainError that says what to install when there is none.
    """
    if command is not None:
        found = shutil.which(command)
        if found is None:
            raise ToolchainError(f"there is no {command} on the PATH; install it")
        return Toolchain("host", (found,), _version((found,), command))
    cc = shutil.which("cc")
    if cc is not None:
        return Toolchain("host", (cc,), _version((cc,), "gcc"))
    zig = _zig()
    if zig is None:
        raise ToolchainError(
            "there is no C compiler for this machine: install zig (pip install ziglang) or GCC"
        )
    return Toolchain("host", zig, _version(zig, "zig"))


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


@dataclass(frozen=True)
class _Object:
    path: Path
    cached: bool


def _result(output: Path, version: str, objects: Sequence[_Object]) -> BuildResult:
    cached = sum(item.cached for item in objects)
    return BuildResult(output, version, len(objects) - cached, cached)


def _as_source(source: Source | Path) -> Source:
    return source if isinstance(source, Source) else Source(source)


def _zig() -> tuple[str, ...] | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    return (sys.executable, "-m", "ziglang", "cc")


@lru_cache(maxsize=16)
def _version(command: tuple[str, ...], name: str) -> str:
    asked = [*command[:-1], "version"] if name == "zig" else [*command, "-dumpfullversion"]
    finished = subprocess.run(asked, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        finished = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=False
        )
    if finished.returncode != 0:
        raise ToolchainError(
            f"{' '.join(command)} doesn't run: {_first_error(finished)}; reinstall it"
        )
    return f"{name} {finished.stdout.strip().splitlines()[0]}"


def _first_error(finished: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (finished.stderr + finished.stdout).splitlines() if line.strip()]
    for line in lines:
        if _FIRST_ERROR.search(line):
            return line.strip()
    return lines[0].strip() if lines else f"exit code {finished.returncode}, no message"


def _key(words: Sequence[str], source: Path, include_dirs: Sequence[Path]) -> str:
    """Hash of the command's words, and of the source with every header that it may include."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    digest.update(source.name.encode() + b"\0")
    waiting, seen = [source], {source.resolve()}
    while waiting:
        current = waiting.pop()
        content = current.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        for name in _INCLUDE.findall(content):
            for folder in [current.parent, *include_dirs]:
                header = folder / name.decode()
                if header.is_file():
                    if header.resolve() not in seen:
                        seen.add(header.resolve())
                        waiting.append(header)
                    break
    return digest.hexdigest()


def _prune(cache: Path) -> None:
    """Keeps the objects used last, so that the cache doesn't grow for ever."""
    used: dict[Path, float] = {}
    for item in cache.glob("*/*.o"):
        with contextlib.suppress(FileNotFoundError):  # another build prunes as well
            used[item] = item.stat().st_mtime
    if len(used) <= CACHED_OBJECTS_AT_MOST:
        return
    for item in sorted(used, key=used.__getitem__)[: len(used) - CACHED_OBJECTS_AT_MOST // 2]:
        item.unlink(missing_ok=True)
