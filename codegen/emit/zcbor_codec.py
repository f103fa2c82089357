"""The device's CBOR codec, generated from the protocol's CDDL when firmware is built.

zcbor's generator and its C files come from the installed Python package; nothing of them is
kept in this repository.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

from codegen.errors import ToolchainError
from codegen.host_toolchain import cache_folder

ENTRY_TYPES = ("announce", "task", "delta", "receipt", "status", "identity")
# Without it zcbor writes arrays of indefinite length, which the wire format doesn't have.
CODEC_DEFINES = {"ZCBOR_CANONICAL": 1}
RUNTIME_SOURCES = ("zcbor_common.c", "zcbor_decode.c", "zcbor_encode.c")
RUNTIME_HEADERS = (
    "zcbor_common.h",
    "zcbor_decode.h",
    "zcbor_encode.h",
    "zcbor_print.h",
    "zcbor_tags.h",
)
_OPTIONS = ("-d", "-e", "-b", "32", "-t", *ENTRY_TYPES)
_REMEDY = "zcbor 0.9.1 with cbor2 below 6 is needed: pip install 'zcbor==0.9.1' 'cbor2<6'"


def generate_codec(cddl: Path, folder: Path) -> list[Path]:
    """Writes ``tinyfleet_cbor_*`` and zcbor's own C files into ``folder``.

    What a description becomes lies in the cache folder from then on. Returns the C files to
    compile: the generated ones and zcbor's runtime. They are meant to be compiled without this
    project's warning flags (zcbor's encoder has unused results).
    Raises ToolchainError if zcbor isn't installed, or refuses the CDDL.
    """
    if not cddl.is_file():
        raise ToolchainError(f"there is no protocol description at {cddl}; give the CDDL's path")
    shutil.copytree(_generated(cddl), folder, dirs_exist_ok=True)
    for name, part in [(name, "src") for name in RUNTIME_SOURCES] + [
        (name, "include") for name in RUNTIME_HEADERS
    ]:
        content = resources.files("zcbor").joinpath(part, name).read_bytes()
        (folder / name).write_bytes(content)
    generated = ["tinyfleet_cbor_decode.c", "tinyfleet_cbor_encode.c"]
    return [folder / name for name in [*generated, *RUNTIME_SOURCES]]


def _generated(cddl: Path) -> Path:
    """The folder with what zcbor makes of ``cddl``."""
    try:
        version = metadata.version("zcbor")
    except metadata.PackageNotFoundError:
        raise ToolchainError(f"zcbor isn't installed; {_REMEDY}") from None
    words = "\n".join((version, *_OPTIONS)).encode()
    key = hashlib.sha256(words + b"\0" + cddl.read_bytes()).hexdigest()
    kept = cache_folder() / "codec" / key
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Made under a name of its own and renamed, so that a killed build leaves no half of it behind.
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        made = Path(scratch) / "codec"
        made.mkdir()
        command = [sys.executable, "-m", "zcbor.zcbor.zcbor", "code", "-c", str(cddl), *_OPTIONS]
        command += ["--oc", str(made / "tinyfleet_cbor.c"), "--oh", str(made / "tinyfleet_cbor.h")]
        command += ["--oht", str(made / "tinyfleet_cbor_types.h")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise ToolchainError(
                f"zcbor can't generate the codec from {cddl.name}: {lines[-1]} ({_REMEDY})"
            )
        try:
            made.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another build has made it meanwhile
                raise
    return kept
