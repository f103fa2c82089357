"""Compiling C: objects kept by content, and libraries and programs for this machine.

Objects are cached by the content of everything that goes into them, under ``TINYFLEET_CACHE`` or
the user's cache folder, so that building the same sources again only links.
``codegen.firmware.toolchain`` stands on this for boards.
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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from codegen.errors import ToolchainError

Defines = Mapping[str, str | int]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and of how many."""

PARALLEL_JOBS = 2
CACHED_OBJECTS_AT_MOST = 4000
CACHED_LIBRARIES_AT_MOST = 20

_BUILDING = "building-"
_LONGEST_BUILD_SECONDS = 86_400
_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_COMMON = ("-std=c99", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections", "-g0")
_OWN = "TF_"  # what no header of a system or of others' code asks for
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*[<"]([^">]+)[">]', re.MULTILINE)
_FIRST_ERROR = re.compile(
    r"error: |cannot find|undefined (reference|symbol)|will not fit|overflowed"
)


@dataclass(frozen=True)
class Source:
    """One C file to compile; ``warnings`` is off for code that isn't ours."""

    path: Path
    optimize: str = "-O2"
    warnings: bool = True
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildResult:
    """A linked file, and how many of its objects were compiled for it, not taken from the cache."""

    output: Path
    compiled: int


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


@dataclass(frozen=True)
class Object:
    """A compiled source, and whether it came from the cache."""

    path: Path
    cached: bool


@dataclass(frozen=True)
class Compiler:
    """A C compiler: ``kind`` tells what it compiles for, and whose it is."""

    kind: str
    command: tuple[str, ...]
    version: str

    def objects(
        self,
        sources: Sequence[Source | Path],
        include_dirs: Sequence[Path],
        defines: Defines,
        flags: tuple[str, ...],
        progress: Progress | None,
    ) -> list[Object]:
        """The sources compiled, in order; those of the cache where nothing has changed.

        Raises ToolchainError with the compiler's first error.
        """
        units = [item if isinstance(item, Source) else Source(item) for item in sources]
        for source in units:
            if not source.path.is_file():
                raise ToolchainError(f"source file {source.path} is missing; reinstall tinyfleet")
        base = (*_COMMON, *flags)
        cache = cache_folder() / "objects"
        counting = Lock()
        done = 0

        def compile_one(source: Source) -> Object:
            nonlocal done
            made = self._compile_one(source, include_dirs, defines, base, cache)
            with counting:
                done += 1
                if progress is not None:
                    progress("compiling", done, len(units))
            return made

        with ThreadPoolExecutor(PARALLEL_JOBS) as pool:
            objects = list(pool.map(compile_one, units))
        _prune(cache, "*/*.o", CACHED_OBJECTS_AT_MOST)
        _clear(cache.glob(f"*/{_BUILDING}*"))
        return objects

    def _compile_one(
        self,
        source: Source,
        include_dirs: Sequence[Path],
        defines: Defines,
        base: tuple[str, ...],
        cache: Path,
    ) -> Object:
        options = [*base, source.optimize, *source.flags]
        options += _WARNINGS if source.warnings else ("-w",)
        words = [self.kind, *self.command, self.version, *options]
        key = _key(words, [source.path], include_dirs, defines)
        target = cache / key[:2] / f"{key}.o"
        if _use(target):
            return Object(target, cached=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Compiled under a name of its own and renamed, so that two builds at once, or a killed
        # one, never leave half an object behind.
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=target.parent) as folder:
            made = Path(folder) / "unit.o"
            includes = [f"-I{item}" for item in include_dirs]
            definitions = [f"-D{name}={value}" for name, value in sorted(defines.items())]
            command = [*self.command, *options, *definitions, *includes]
            command += ["-c", str(source.path), "-o", str(made)]
            finished = self._run(command)
            if finished.returncode != 0:
                raise ToolchainError(
                    f"{self.version} can't compile {source.path.name}: {_first_error(finished)}"
                )
            made.replace(target)
        return Object(target, cached=False)

    def link(self, command: list[str], output: Path) -> None:
        """Runs ``command`` for ``output``; raises LinkError with the linker's first error."""
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


class HostToolchain(Compiler):
    """A compiler for this machine."""

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

        ``sanitize`` names sanitizers ("address", "undefined", "fuzzer"). Raises ToolchainError
        with the compiler's first error, LinkError with the linker's.
        """
        extra: list[str] = ["-fPIC", *flags]
        if sanitize:
            extra += [f"-fsanitize={','.join(sanitize)}", "-fno-sanitize-recover=all"]
        elif "zig" in self.version:
            extra += ["-fno-sanitize=undefined"]
        objects = self.objects(sources, include_dirs, defines or {}, tuple(extra), progress)
        command = [*self.command, *extra, *(str(item.path) for item in objects)]
        command += ["-shared"] if shared else []
        self.link(command, output)
        return result_of(output, objects)

    def library(self, sources: Sequence[Path], *, include_dirs: Sequence[Path]) -> Path:
        """A shared library of ``sources`` for this machine, kept with the objects.

        Raises as ``build_host``.
        """
        key = _key([self.kind, *self.command, self.version], sources, include_dirs)
        kept = cache_folder() / "libraries" / f"{key}.so"
        if not _use(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=kept.parent) as folder:
                made = Path(folder) / "library.so"
                self.build_host(sources, include_dirs=include_dirs, output=made)
                made.replace(kept)
            _prune(kept.parent, "*.so", CACHED_LIBRARIES_AT_MOST)
            _clear(kept.parent.glob(f"{_BUILDING}*"))
        return kept


def host_toolchain(command: str | None = None) -> HostToolchain:
    """The compiler for this machine: ``command`` (such as "clang"), else ``cc``, else zig.

    Raises ToolchainError that says what to install when there is none.
    """
    if command is not None:
        found = shutil.which(command)
        if found is None:
            raise ToolchainError(f"there is no {command} on the PATH; install it")
        return HostToolchain("host", (found,), version_of((found,), command))
    cc = shutil.which("cc")
    if cc is not None:
        return HostToolchain("host", (cc,), version_of((cc,), "gcc"))
    zig = zig_command()
    if zig is None:
        raise ToolchainError(
            "there is no C compiler for this machine: install zig (pip install ziglang) or GCC"
        )
    return HostToolchain("host", zig, version_of(zig, "zig"))


def result_of(output: Path, objects: Sequence[Object]) -> BuildResult:
    """What a linked file was made of."""
    return BuildResult(output, sum(not item.cached for item in objects))


def zig_command() -> tuple[str, ...] | None:
    """How zig is called as a C compiler; None where it isn't installed."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    return (sys.executable, "-m", "ziglang", "cc")


@lru_cache(maxsize=16)
def version_of(command: tuple[str, ...], name: str) -> str:
    """The compiler's name and version. Raises ToolchainError where it doesn't run."""
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


def _key(
    words: Sequence[str],
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
    defines: Defines | None = None,
) -> str:
    """Hash of the command's words, and of sources with every header that they may include.

    Of our own definitions those count that one of these files names, so that boards of one core
    share all objects but those of their ports.
    """
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for source in sources:
        digest.update(source.name.encode() + b"\0")
    waiting, seen = [*sources], {source.resolve() for source in sources}
    unnamed = dict(defines or {})
    named = {name: unnamed.pop(name) for name in [*unnamed] if not name.startswith(_OWN)}
    while waiting:
        current = waiting.pop()
        content = current.read_bytes()
        named |= {name: unnamed.pop(name) for name in [*unnamed] if name.encode() in content}
        digest.update(hashlib.sha256(content).digest())
        for name in _INCLUDE.findall(content):
            for folder in [current.parent, *include_dirs]:
                header = folder / name.decode()
                if header.is_file():
                    if header.resolve() not in seen:
                        seen.add(header.resolve())
                        waiting.append(header)
                    break
    for name, value in sorted(named.items()):
        digest.update(f"{name}={value}".encode() + b"\0")
    return digest.hexdigest()


def _use(kept: Path) -> bool:
    """Whether the file is there; it counts as used now, before anything else is done with it."""
    try:
        os.utime(kept)
    except FileNotFoundError:
        return False
    return True


def _prune(cache: Path, pattern: str, most: int) -> None:
    """Keeps the files used last, so that the cache doesn't grow for ever."""
    used: dict[Path, float] = {}
    for item in cache.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another build prunes as well
            used[item] = item.stat().st_mtime
    if len(used) <= most:
        return
    for item in sorted(used, key=used.__getitem__)[: len(used) - most // 2]:
        with contextlib.suppress(FileNotFoundError):
            if item.stat().st_mtime == used[item]:  # else another build links it by now
                item.unlink()


def _clear(folders: Iterable[Path]) -> None:
    """Deletes what builds have left that were killed."""
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _LONGEST_BUILD_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
