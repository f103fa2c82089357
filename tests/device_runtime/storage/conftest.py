"""The storage code as a host shared library over flash whose power can be cut."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from simulator.machines import host_structs

HERE = Path(__file__).parent
RUNTIME = HERE.parents[2] / "device_runtime"
FLASH_ADDRESS = 0x08000000
SECTOR_BYTES = 4096
SECTORS = 272  # so many that two slots of more chunks than 4,096 bytes have marks for fit

OK, AGAIN, NO_MEMORY, NOT_FOUND, BAD_INPUT, FLASH_FAILED, LINK_LOST = range(7)


class Region(host_structs.Region):
    @classmethod
    def of_sectors(cls, first: int, count: int) -> "Region":
        return cls(FLASH_ADDRESS + first * SECTOR_BYTES, count * SECTOR_BYTES, first, count)


class FlashSeam(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("context", "erase", "program", "map")]


class Flash(ctypes.Structure):
    """``emulated_flash`` of emulated_flash.h."""

    _fields_ = [
        ("seam", FlashSeam),
        ("content", ctypes.c_uint8 * (SECTORS * SECTOR_BYTES)),
        ("operations", ctypes.c_uint32),
        ("operations_to_cut", ctypes.c_uint32),
        ("random", ctypes.c_uint32),
        ("worn", ctypes.c_uint32),
        ("dead", ctypes.c_uint8),
        ("rewrote", ctypes.c_uint8),
    ]

    def power_on(self, operations_to_cut: int = 0) -> None:
        """The power comes back, and goes again during that operation (0: never)."""
        self.dead = 0
        self.operations = 0
        self.operations_to_cut = operations_to_cut


class WeightsStore(ctypes.Structure):
    _fields_ = [
        ("flash", ctypes.c_void_p),
        ("slots", Region * 2),
        ("factory", ctypes.c_void_p),
        ("factory_sha256", ctypes.c_void_p),
        ("model_digest", ctypes.c_uint32),
        ("weights_bytes", ctypes.c_uint32),
        ("chunk_bytes", ctypes.c_uint32),
        ("chunks", ctypes.c_uint32),
        ("missing", ctypes.c_uint32),
        ("current", ctypes.c_int8),
        ("candidate", ctypes.c_int8),
        ("staging", ctypes.c_int8),
        ("resumed", ctypes.c_bool),
        ("verified", ctypes.c_bool),
    ]


class Journal(ctypes.Structure):
    _fields_ = [
        ("flash", ctypes.c_void_p),
        ("units", Region * 2),
        ("sequence", ctypes.c_uint32),
        ("end", ctypes.c_uint32),
        ("highest", ctypes.c_uint64 * 3),
        ("active", ctypes.c_int8),
    ]


class SampleLog(ctypes.Structure):
    _fields_ = [
        ("flash", ctypes.c_void_p),
        ("place", host_structs.SampleRegion),
        ("unit_bytes", ctypes.c_uint32),
        ("place_bytes", ctypes.c_uint32),
        ("digest", ctypes.c_uint32),
        ("random", ctypes.c_uint32),
        ("drawn", ctypes.c_uint32),
        ("sequence", ctypes.c_uint32),
        ("end", ctypes.c_uint32),
        ("ordinal", ctypes.c_uint32),
        ("rate", ctypes.c_uint32),
        ("unit", ctypes.c_uint16),
    ]


class Record(ctypes.Structure):
    _fields_ = [
        ("payload", ctypes.POINTER(ctypes.c_uint8)),
        ("payload_bytes", ctypes.c_uint32),
        ("place", ctypes.c_uint16),
        ("label", ctypes.c_uint16),
        ("held_out", ctypes.c_bool),
    ]

    def data(self) -> bytes:
        return ctypes.string_at(self.payload, self.payload_bytes)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Storage and hashes, compiled with the undefined-behaviour checks of the compiler."""
    path = tmp_path_factory.mktemp("storage") / "libstorage.so"
    sources = [*sorted((RUNTIME / "storage").glob("*.c")), *sorted((RUNTIME / "hash").glob("*.c"))]
    subprocess.run(
        ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared",
         "-fsanitize=undefined", "-fno-sanitize-recover=all",
         "-I", RUNTIME / "include", HERE / "emulated_flash.c", *sources, "-o", path],
        check=True,
    )  # fmt: skip
    loaded = ctypes.CDLL(str(path))
    for name in ("current", "current_sha256", "candidate", "candidate_sha256", "staged"):
        getattr(loaded, f"tf_weights_{name}").restype = ctypes.c_void_p
    loaded.tf_journal_highest.restype = ctypes.c_uint64
    loaded.tf_weights_payload_offset.restype = ctypes.c_uint32
    loaded.tf_sample_log_count.restype = ctypes.c_uint32
    loaded.tf_weights_has_chunk.restype = ctypes.c_bool
    return loaded


@pytest.fixture
def flash(library: ctypes.CDLL) -> Flash:
    emulated = Flash()
    library.emulated_flash_start(ctypes.byref(emulated), 1)
    return emulated
