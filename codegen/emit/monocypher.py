"""Monocypher, the cryptography of the firmware, from PyPI's source package of its Python side.

Nothing of it is kept in this repository. The package is fetched once with pip, which checks its
hash before it looks into it, and lies in the cache folder from then on;
docs/howto/build-without-internet.md says how it gets there otherwise.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from codegen.errors import ToolchainError
from codegen.host_toolchain import Source, cache_folder

PACKAGE, VERSION = "pymonocypher", "4.0.3.4"
SHA256 = "5e56e3d3eb770a53e0b9f6274146663c11a11f3d0de5cd48e3be0428d1b07a4a"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
ENVIRONMENT = "TINYFLEET_MONOCYPHER"
"""Names the archive's path where it isn't in the cache folder."""
SOURCE = "monocypher.c"
FILES = (SOURCE, "monocypher.h")
_FLAGS = ("-DBLAKE2_NO_UNROLLING",)


def monocypher_source(folder: Path) -> Source:
    """How Monocypher's C file in ``folder`` is compiled: small, and without our warning flags."""
    return Source(folder / SOURCE, optimize="-Os", warnings=False, flags=_FLAGS)


def write_monocypher(folder: Path) -> Source:
    """Writes Monocypher's two files into ``folder``; returns what to compile.

    Raises ToolchainError, with the remedy, where the package isn't here and can't be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fetch_monocypher()) as archive:
        for name in FILES:
            member = archive.extractfile(f"{PACKAGE}-{VERSION}/{name}")
            assert member is not None  # the hash says that it is there
            (folder / name).write_bytes(member.read())
    return monocypher_source(folder)


def fetch_monocypher() -> Path:
    """The source package: the one that TINYFLEET_MONOCYPHER names, else that of the cache folder,
    where it is fetched to with pip.

    Raises ToolchainError, with the remedy, where it is another one or can't be had.
    """
    named = os.environ.get(ENVIRONMENT)
    kept = Path(named) if named else cache_folder() / "sources" / ARCHIVE
    if not named and not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Fetched into a folder of its own and renamed: two builds at once don't meet.
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            _download(Path(folder)).replace(kept)
    try:
        content = kept.read_bytes()
    except OSError as error:
        raise ToolchainError(f"{ENVIRONMENT} names {kept}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ToolchainError(
            f"{kept} isn't the {ARCHIVE} that firmware is built with (sha256 {SHA256}); remove it, "
            "and it is fetched again (docs/howto/build-without-internet.md)"
        )
    return kept


def _download(folder: Path) -> Path:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", PACKAGE, "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ToolchainError(
            f"pip can't fetch {ARCHIVE}, whose C is part of the firmware: {lines[-1]} "
            "(docs/howto/build-without-internet.md)"
        )
    return folder / ARCHIVE


if __name__ == "__main__":
    print(fetch_monocypher())
