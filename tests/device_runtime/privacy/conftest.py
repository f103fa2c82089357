"""Keys and masks in C as a host library, over flash whose power can be cut."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import pytest

from codegen.emit.monocypher import write_monocypher
from codegen.emit.zcbor_codec import CODEC_DEFINES, generate_codec
from codegen.host_toolchain import Source, host_toolchain
from fleet.protocol import Task, topics

from ..host_device import CDDL, RUNTIME
from ..storage.conftest import OK, SECTOR_BYTES, Flash, Journal, Region

HERE = Path(__file__).parent
IDENTITY_SECTOR, JOURNAL_SECTOR = 3, 4
IDENTITY_AT = IDENTITY_SECTOR * SECTOR_BYTES
DELTA_TOPIC = topics.delta("f", "gw", "dev1").encode()


class Places(ctypes.Structure):
    _fields_ = [("identity", Region), ("journal", Region)]


PLACES = Places(Region.of_sectors(IDENTITY_SECTOR, 1), Region.of_sectors(JOURNAL_SECTOR, 2))


class KeyedDevice:
    """What a device knows of keys, after ``boot``; ``region`` is what its identity region has."""

    def __init__(
        self,
        library: ctypes.CDLL,
        region: bytes,
        fleet: str = "f",
        device: str = "dev1",
        secret: int = 7,
    ) -> None:
        self.library = library
        self._memory = ctypes.create_string_buffer(library.harness_bytes() + 16)
        start = ctypes.addressof(self._memory)
        self._harness = ctypes.c_void_p(start + -start % 16)
        library.harness_start(self._harness, fleet.encode(), device.encode(), secret)
        self.flash = Flash.from_address(self._harness.value or 0)
        self.content = region, IDENTITY_AT
        self.boot()

    @property
    def content(self) -> tuple[bytes, int]:
        """All that identity and journal have, and where it lies."""
        start = ctypes.addressof(self.flash.content) + IDENTITY_AT
        return ctypes.string_at(start, 3 * SECTOR_BYTES), IDENTITY_AT

    @content.setter
    def content(self, content: tuple[bytes, int]) -> None:
        data, at = content
        ctypes.memmove(ctypes.addressof(self.flash.content) + at, data, len(data))

    def boot(self, operations_to_cut: int = 0) -> None:
        self.flash.power_on(operations_to_cut)
        assert self.library.harness_open(self._harness, ctypes.byref(PLACES)) == OK

    def set_secret(self, secret: int) -> None:
        """What the port's secrets come from; 0: there are none."""
        self.library.harness_set_secret(self._harness, secret)

    @property
    def keys(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.library.harness_keys(self._harness))

    @property
    def journal(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.library.harness_journal(self._harness))

    @property
    def generation(self) -> int:
        return self.library.tf_keys_generation(self.keys)

    def take(self, keyring: bytes) -> bool:
        where = ctypes.create_string_buffer(keyring, len(keyring) or 1)
        return self.library.tf_keys_take(self.keys, where, ctypes.c_size_t(len(keyring)))

    def keep(self) -> int:
        return self.library.tf_keys_keep(self.keys, self.journal)

    def rotate_journal(self) -> None:
        """Fills the unit of the journal that is in use with records of another kind."""
        journal = Journal.from_address(self.journal.value or 0)
        sequence, turn = journal.sequence, 0
        while journal.sequence == sequence:
            turn += 1
            payload = turn.to_bytes(4, "little") * 100
            assert self.library.tf_journal_write(self.journal, 200, payload, len(payload)) == OK

    def is_signed(self, message: bytes, response_topic: bytes = DELTA_TOPIC) -> bool:
        told = self.library.harness_signed(
            *(self._harness, response_topic, ctypes.c_size_t(len(response_topic))),
            *(message, ctypes.c_size_t(len(message))),
        )
        assert told in (0, 1), "not a task"
        return bool(told)

    def can_mask(self, unmaskers: bytes) -> bool:
        return self.library.tf_keys_can_mask(self.keys, unmaskers)

    def seal_keys(self, count: int) -> list[bytes]:
        place = self.library.harness_seal_keys(self._harness)
        return [ctypes.string_at(place + 32 * i, 32) for i in range(count)] if place else []

    def mask(
        self, task: Task, nonce: bytes, values: Sequence[int], piece: int = 64
    ) -> tuple[bytes, int]:
        """Coded bytes, read in pieces of that size, and the CRC that was told before."""
        message = task.encode()
        coded = ctypes.create_string_buffer(200 + 4 * len(values) + 4)
        crc = ctypes.c_uint32()
        size = self.library.harness_mask(
            *(self._harness, message, ctypes.c_size_t(len(message)), nonce),
            *((ctypes.c_int32 * len(values))(*values), len(values), piece),
            *(coded, ctypes.byref(crc)),
        )
        return coded.raw[:size], crc.value


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Everything but client, engine and link, with the compiler's undefined-behaviour checks."""
    folder = tmp_path_factory.mktemp("privacy")
    names = ("privacy", "storage", "hash")
    ours = [path for name in names for path in sorted((RUNTIME / name).glob("*.c"))]
    ours += [RUNTIME / "codec" / "messages.c", HERE / "harness.c"]
    ours += [HERE.parent / "storage" / "emulated_flash.c"]
    built = host_toolchain().build_host(
        [
            *map(Source, ours),
            *(Source(path, warnings=False) for path in generate_codec(CDDL, folder)),
            write_monocypher(folder),
        ],
        include_dirs=[RUNTIME / "include", folder],
        output=folder / "libprivacy.so",
        defines=CODEC_DEFINES,
        sanitize=("undefined",),
    )
    loaded = ctypes.CDLL(str(built.output))
    for name in ("keys", "journal", "seal_keys"):
        getattr(loaded, f"harness_{name}").restype = ctypes.c_void_p
    for name in ("take", "can_mask"):
        getattr(loaded, f"tf_keys_{name}").restype = ctypes.c_bool
    loaded.tf_keys_generation.restype = ctypes.c_uint32
    loaded.tf_journal_highest.restype = ctypes.c_uint64
    loaded.harness_mask.restype = ctypes.c_uint32
    return loaded
