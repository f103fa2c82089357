"""The weights store, with the power cut at every flash operation."""

import ctypes
import hashlib
import random
from dataclasses import dataclass

import pytest

from codegen.firmware.flash_layout import slot_header_bytes

from .conftest import BAD_INPUT, FLASH_FAILED, NO_MEMORY, NOT_FOUND, OK, Flash, Region, WeightsStore

CHUNK_BYTES = 64
WEIGHTS_BYTES = 6 * CHUNK_BYTES + 18  # the last chunk is short and ends within a word
FACTORY = random.Random(0).randbytes(WEIGHTS_BYTES)
MODEL, OTHER_MODEL = 0x81D20C35, 0x81D20C34
VERSIONS = [random.Random(seed).randbytes(WEIGHTS_BYTES) for seed in (1, 2, 3)]
SLOTS = (Region * 2)(Region.of_sectors(0, 2), Region.of_sectors(2, 2))


def chunks_of(blob: bytes) -> list[bytes]:
    return [blob[at : at + CHUNK_BYTES] for at in range(0, len(blob), CHUNK_BYTES)]


@dataclass
class Device:
    """A device's life with its flash: each method call runs on what the last one left."""

    library: ctypes.CDLL
    flash: Flash
    model: int = MODEL
    """Digest of the model in the firmware that the device is flashed with."""

    def boot(self) -> WeightsStore:
        store = WeightsStore()
        self.factory = ctypes.create_string_buffer(FACTORY, len(FACTORY))
        self.digest = ctypes.create_string_buffer(hashlib.sha256(FACTORY).digest(), 32)
        assert self.library.tf_weights_open(
            ctypes.byref(store), ctypes.byref(self.flash), SLOTS, self.factory, self.digest,
            self.model, WEIGHTS_BYTES,
        ) == OK  # fmt: skip
        return store

    def active(self, store: WeightsStore) -> bytes:
        """The active blob, after a look that its digest belongs to it."""
        place = self.library.tf_weights_active(ctypes.byref(store))
        blob = ctypes.string_at(place, WEIGHTS_BYTES)
        digest = self.library.tf_weights_active_sha256(ctypes.byref(store))
        assert ctypes.string_at(digest, 32) == hashlib.sha256(blob).digest()
        return blob

    def stage(self, store: WeightsStore, blob: bytes) -> int:
        digest = hashlib.sha256(blob).digest()
        return self.library.tf_weights_stage(
            ctypes.byref(store), digest, WEIGHTS_BYTES, CHUNK_BYTES
        )

    def download(self, store: WeightsStore, blob: bytes, order: list[int]) -> int:
        """Writes the chunks that are missing; how many those were, or -1 on a failure."""
        chunks = chunks_of(blob)
        written = 0
        for index in order:
            if self.library.tf_weights_has_chunk(ctypes.byref(store), index):
                continue
            status = self.library.tf_weights_write_chunk(
                ctypes.byref(store), index, chunks[index], len(chunks[index])
            )
            if status != OK:
                assert status == FLASH_FAILED
                return -1
            written += 1
        return written

    def update(self, blob: bytes, order: list[int] | None = None) -> bool:
        """Boot, stage, download, verify, commit; whether it went through to the end."""
        store = self.boot()
        if self.active(store) == blob:
            return True
        order = order or list(range(len(chunks_of(blob))))
        return (
            self.stage(store, blob) == OK
            and self.download(store, blob, order) >= 0
            and self.library.tf_weights_verify(ctypes.byref(store)) == OK
            and self.library.tf_weights_commit(ctypes.byref(store)) == OK
        )

    def snapshot(self) -> bytes:
        return bytes(self.flash.content)

    def restore(self, content: bytes) -> None:
        ctypes.memmove(self.flash.content, content, len(content))


@pytest.fixture
def device(library: ctypes.CDLL, flash: Flash) -> Device:
    return Device(library, flash)


def prepare_factory(device: Device) -> bytes:
    return FACTORY


def prepare_one_version(device: Device) -> bytes:
    assert device.update(VERSIONS[0])
    return VERSIONS[0]


def prepare_two_versions(device: Device) -> bytes:
    """Both slots are used, so that staging has to erase an older version."""
    assert device.update(VERSIONS[0])
    assert device.update(VERSIONS[1])
    return VERSIONS[1]


def prepare_other_download_begun(device: Device) -> bytes:
    assert device.update(VERSIONS[0])
    store = device.boot()
    assert device.stage(store, VERSIONS[1]) == OK
    assert device.download(store, VERSIONS[1], [4, 1]) == 2
    return VERSIONS[0]


def prepare_two_versions_of_another_model(device: Device) -> bytes:
    """Of the same number of bytes: only the digest tells that they mean something else."""
    device.model = OTHER_MODEL
    prepare_two_versions(device)
    device.model = MODEL
    return FACTORY


def prepare_download_begun_of_another_model(device: Device) -> bytes:
    """The very bytes that will be downloaded for this one."""
    device.model = OTHER_MODEL
    store = device.boot()
    assert device.stage(store, VERSIONS[2]) == OK
    assert device.download(store, VERSIONS[2], [4, 1]) == 2
    device.model = MODEL
    return FACTORY


PREPARATIONS = [
    prepare_factory, prepare_one_version, prepare_two_versions, prepare_other_download_begun,
    prepare_two_versions_of_another_model, prepare_download_begun_of_another_model,
]  # fmt: skip


@pytest.mark.parametrize("prepare", PREPARATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_power_cut_at_every_operation_leaves_old_or_new_and_the_download_finishes(
    device: Device, prepare, seed: int
) -> None:
    old, new = prepare(device), VERSIONS[2]
    order = list(range(len(chunks_of(new))))
    random.Random(seed).shuffle(order)
    before = device.snapshot()
    device.flash.power_on()
    assert device.update(new, order)
    operations = device.flash.operations
    assert operations > WEIGHTS_BYTES // 4
    for cut in range(1, operations + 1):
        device.restore(before)
        device.flash.random = seed * 1000 + cut
        device.flash.power_on(operations_to_cut=cut)
        assert not device.update(new, order), f"the cut at operation {cut} went unnoticed"
        device.flash.power_on()
        survivor = device.active(device.boot())
        assert survivor in (old, new), f"neither version after a cut at operation {cut}"
        assert survivor == old or cut == operations
        assert device.update(new, order), f"no resumption after a cut at operation {cut}"
        assert device.active(device.boot()) == new


@pytest.mark.parametrize("seed", range(20))
def test_many_cuts_in_a_row_never_lose_the_active_version(device: Device, seed: int) -> None:
    dice = random.Random(seed)
    device.flash.random = seed
    active = FACTORY
    for blob in [VERSIONS[0], VERSIONS[1], VERSIONS[2], VERSIONS[0], VERSIONS[1]]:
        for _ in range(10_000):
            device.flash.power_on(operations_to_cut=dice.randint(1, 60))
            done = device.update(blob)
            device.flash.power_on()
            survivor = device.active(device.boot())
            assert survivor in (active, blob)
            if done:
                break
        assert survivor == blob
        active = blob


def test_chunks_that_are_in_flash_are_not_asked_for_again(device: Device) -> None:
    store = device.boot()
    assert device.stage(store, VERSIONS[0]) == OK
    assert device.download(store, VERSIONS[0], [5, 0, 3]) == 3
    store = device.boot()
    assert device.stage(store, VERSIONS[0]) == OK
    assert store.missing == len(chunks_of(VERSIONS[0])) - 3
    assert store.resumed
    assert device.download(store, VERSIONS[0], list(range(7))) == store.chunks - 3
    assert device.library.tf_weights_verify(ctypes.byref(store)) == OK


def test_slots_of_another_model_are_as_if_erased(device: Device) -> None:
    prepare_two_versions_of_another_model(device)
    store = device.boot()
    assert store.active == -1
    assert device.active(store) == FACTORY
    assert device.update(VERSIONS[2])
    assert device.active(device.boot()) == VERSIONS[2]


def test_a_download_that_another_model_began_starts_from_anew(device: Device) -> None:
    prepare_download_begun_of_another_model(device)
    store = device.boot()
    assert device.stage(store, VERSIONS[2]) == OK
    assert not store.resumed
    assert store.missing == len(chunks_of(VERSIONS[2]))


def test_a_model_that_comes_back_finds_what_no_other_one_has_overwritten(device: Device) -> None:
    assert device.update(VERSIONS[0])
    device.model = OTHER_MODEL
    assert device.active(device.boot()) == FACTORY
    device.model = MODEL
    assert device.active(device.boot()) == VERSIONS[0]


def test_words_are_programmed_once_when_nothing_is_cut(device: Device) -> None:
    for blob in VERSIONS:
        assert device.update(blob)
    assert not device.flash.rewrote


def test_a_blob_with_another_digest_is_refused_and_the_active_version_stays(device: Device) -> None:
    assert device.update(VERSIONS[0])
    store = device.boot()
    assert device.stage(store, VERSIONS[1]) == OK
    wrong = bytearray(VERSIONS[1])
    wrong[200] ^= 1
    assert device.download(store, bytes(wrong), list(range(7))) == 7
    assert device.library.tf_weights_verify(ctypes.byref(store)) == BAD_INPUT
    assert device.library.tf_weights_staged(ctypes.byref(store)) is None
    assert device.library.tf_weights_commit(ctypes.byref(store)) == NOT_FOUND
    assert device.active(device.boot()) == VERSIONS[0]
    assert device.library.tf_weights_discard(ctypes.byref(store)) == OK
    assert device.update(VERSIONS[1])


def test_a_verified_version_stays_staged_over_a_reset_until_it_is_committed(
    device: Device,
) -> None:
    store = device.boot()
    assert device.stage(store, VERSIONS[0]) == OK
    assert device.download(store, VERSIONS[0], list(range(7))) == 7
    assert device.library.tf_weights_verify(ctypes.byref(store)) == OK
    staged = device.library.tf_weights_staged(ctypes.byref(store))
    assert ctypes.string_at(staged, WEIGHTS_BYTES) == VERSIONS[0]
    store = device.boot()
    assert device.active(store) == FACTORY
    assert device.stage(store, VERSIONS[0]) == OK
    assert store.missing == 0


def test_a_flipped_bit_in_the_active_slot_brings_back_the_version_before(device: Device) -> None:
    assert device.update(VERSIONS[0])
    assert device.update(VERSIONS[1])
    store = device.boot()
    assert device.active(store) == VERSIONS[1]
    damaged = SLOTS[store.active].address - 0x08000000 + 4096 + 77
    device.flash.content[damaged] ^= 4
    assert device.active(device.boot()) == VERSIONS[0]


@pytest.mark.parametrize("offset", [*range(0, 56, 3), 57, 61])
def test_a_damaged_header_of_the_active_slot_brings_back_the_version_before(
    device: Device, offset: int
) -> None:
    assert device.update(VERSIONS[0])
    assert device.update(VERSIONS[1])
    active = device.boot().active
    device.flash.content[SLOTS[active].address - 0x08000000 + offset] ^= 0x08
    assert device.active(device.boot()) == VERSIONS[0]


@pytest.mark.parametrize(
    ("weights_bytes", "chunk_bytes"),
    [(WEIGHTS_BYTES + 4, 64), (0, 64), (WEIGHTS_BYTES, 0), (WEIGHTS_BYTES, 62),
     (0xFFFFFFFF, 0xFFFFFFFC)],
)  # fmt: skip
def test_sizes_that_break_the_specification_are_refused_before_anything_is_erased(
    device: Device, weights_bytes: int, chunk_bytes: int
) -> None:
    store = device.boot()
    status = device.library.tf_weights_stage(
        ctypes.byref(store), bytes(32), weights_bytes, chunk_bytes
    )
    assert status == BAD_INPUT
    assert device.flash.operations == 0


def test_chunks_of_a_wrong_length_or_number_are_refused(device: Device) -> None:
    store = device.boot()
    data = bytes(CHUNK_BYTES)
    write = device.library.tf_weights_write_chunk
    assert write(ctypes.byref(store), 0, data, CHUNK_BYTES) == NOT_FOUND
    assert device.stage(store, VERSIONS[0]) == OK
    assert write(ctypes.byref(store), 7, data, 18) == BAD_INPUT
    assert write(ctypes.byref(store), 0xFFFFFFFF, data, 18) == BAD_INPUT
    assert write(ctypes.byref(store), 6, data, CHUNK_BYTES) == BAD_INPUT
    assert write(ctypes.byref(store), 0, data, CHUNK_BYTES - 4) == BAD_INPUT
    assert device.flash.content[4096] == 0xFF


def test_a_slot_smaller_than_the_weights_is_refused(device: Device) -> None:
    store = WeightsStore()
    small = (Region * 2)(Region.of_sectors(0, 1), Region.of_sectors(2, 2))
    status = device.library.tf_weights_open(
        ctypes.byref(store),
        ctypes.byref(device.flash),
        small,
        FACTORY,
        bytes(32),
        MODEL,
        WEIGHTS_BYTES,
    )
    assert status == NO_MEMORY


def test_a_slot_outside_the_flash_is_refused(device: Device) -> None:
    store = WeightsStore()
    outside = (Region * 2)(Region.of_sectors(0, 2), Region.of_sectors(271, 2))
    status = device.library.tf_weights_open(
        ctypes.byref(store),
        ctypes.byref(device.flash),
        outside,
        FACTORY,
        bytes(32),
        MODEL,
        WEIGHTS_BYTES,
    )
    assert status == FLASH_FAILED


@pytest.mark.parametrize("weights_bytes", [0, 1, 512, 516_096, 516_097, 807_000, 2**20, 2**24 + 3])
def test_the_payload_starts_where_the_layout_of_the_flash_expects_it(
    library: ctypes.CDLL, weights_bytes: int
) -> None:
    assert library.tf_weights_payload_offset(weights_bytes) == slot_header_bytes(weights_bytes)


def test_weights_with_more_chunks_than_4096_bytes_have_marks_for_are_stored(
    library: ctypes.CDLL, flash: Flash
) -> None:
    blob = random.Random(9).randbytes(520_001)
    slots = (Region * 2)(Region.of_sectors(0, 132), Region.of_sectors(132, 132))
    factory, digest = bytes(len(blob)), bytes(32)

    def opened() -> WeightsStore:
        store = WeightsStore()
        status = library.tf_weights_open(
            ctypes.byref(store), ctypes.byref(flash), slots, factory, digest, MODEL, len(blob)
        )
        assert status == OK
        return store

    store = opened()
    wanted = hashlib.sha256(blob).digest()
    assert library.tf_weights_stage(ctypes.byref(store), wanted, len(blob), 128) == BAD_INPUT
    assert library.tf_weights_stage(ctypes.byref(store), wanted, len(blob), 512) == OK
    assert store.chunks == 1016
    for index in reversed(range(1016)):
        chunk = blob[512 * index : 512 * (index + 1)]
        status = library.tf_weights_write_chunk(ctypes.byref(store), index, chunk, len(chunk))
        assert status == OK
    assert library.tf_weights_verify(ctypes.byref(store)) == OK
    assert library.tf_weights_commit(ctypes.byref(store)) == OK
    store = opened()
    place = library.tf_weights_active(ctypes.byref(store))
    assert ctypes.string_at(place, len(blob)) == blob
    assert not flash.rewrote
