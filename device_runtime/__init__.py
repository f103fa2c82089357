"""The C that runs on devices, as lists of files for whoever builds it.

Nothing here compiles anything; ``codegen.host_toolchain`` and ``codegen.firmware.toolchain`` do.
Every folder is listed as it is, so a new source file needs no entry anywhere.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_CLIENT = ("codec", "hash", "link", "storage", "privacy", "client")
_SHARED = "cortex_m"
"""What ports to boards share."""


def source_root() -> Path:
    """The folder of the C sources."""
    return Path(str(resources.files("device_runtime")))


def include_directories() -> list[Path]:
    """Where ``tinyfleet/*.h`` is found."""
    return [source_root() / "include"]


def kernel_sources() -> list[Path]:
    """The kernels alone; they need nothing else."""
    return _listed("kernels")


def engine_sources() -> list[Path]:
    """Kernels and training engine: all that a generated model calls."""
    return [*kernel_sources(), *engine_core_sources()]


def engine_core_sources() -> list[Path]:
    """The training engine without kernels."""
    return _listed("engine")


def client_sources() -> list[Path]:
    """Codec, hashes, link, storage, privacy and client: all between the engine and a port.

    ``codec`` needs the files that ``codegen.emit.zcbor_codec.generate_codec`` makes, ``privacy``
    those of ``codegen.emit.monocypher.write_monocypher``.
    """
    return _listed(*_CLIENT)


def firmware_sources(port: str) -> list[Path]:
    """Every C file of a firmware for boards with this port (``board.port``), without the model.

    Raises FileNotFoundError, with the known names, for a port that isn't there.
    """
    return [*engine_sources(), *client_sources(), *_listed("firmware"), *port_sources(port)]


def vector_sources() -> list[Path]:
    """What kernels need beside themselves where they are compiled for the host's vector unit."""
    return _listed("vector")


def kernel_table_source() -> Path:
    """The table of one of several sets of kernels."""
    return source_root() / "kernel_sets" / "table.c"


def kernel_choice_source() -> Path:
    """What chooses between sets of kernels."""
    return source_root() / "kernel_sets" / "choose.c"


def host_sources() -> list[Path]:
    """Every C file of a device in a host process, without its engine and the model."""
    return [*client_sources(), *_listed("port/host")]


def port_sources(port: str) -> list[Path]:
    """C files of one board port, and of what such ports share.

    Raises FileNotFoundError, with the known names, if it isn't there.
    """
    folder = source_root() / "port"
    known = sorted({item.parent.name for item in folder.glob("*/*.c")} - {_SHARED, "host"})
    if port not in known:
        raise FileNotFoundError(
            f"device_runtime has no port {port!r}; it has {', '.join(known)} "
            '(device_runtime/port/, named by "port" in the board\'s description)'
        )
    return _listed(f"port/{_SHARED}", f"port/{port}")


def _listed(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((source_root() / folder).glob("*.c"))]
