"""The weights store, with the power cut at every flash operation."""

import ctypes
import hashlib
import random
from dataclasses import dataclass

import pytest

from codegen.firmware.flash_layout import slot_header_bytes
from simulator.devices.weights_slot import released_weights

from .conftest import (
    BAD_INPUT,
    FLASH_ADDRESS,
    FLASH_FAILED,
    NO_MEMORY,
    NOT_FOUND,
    OK,
    Flash,
    Region,
    WeightsStore,
)

CHUNK_BYTES = 64
WEIGHTS_BYTES = 6 * CHUNK_BYTES + 18  # the last chunk is short and ends within a word
FACTORY = random.Random(0).randbytes(WEIGHTS_BYTES)
MODEL, OTHER_MODEL = 0x81D20C35, 0x81D20C34
VERSIONS = [random.Random(seed).randbytes(WEIGHTS_BYTES) for seed in (1, 2, 3)]
HEADER_BYTES = 56
"""Up to its CRC, that included."""
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

    def current(self, store: WeightsStore) -> bytes:
        """The current blob, after a look that its digest belongs to it."""
        return self._blob(
            self.library.tf_weights_current(ctypes.byref(store)),
            self.library.tf_weights_current_sha256(ctypes.byref(store)),
        )

    def candidate(self, store: WeightsStore) -> bytes | None:
        place = self.library.tf_weights_candidate(ctypes.byref(store))
        digest = self.library.tf_weights_candidate_sha256(ctypes.byref(store))
        assert (place is None) == (digest is None)
        return None if place is None else self._blob(place, digest)

    @staticmethod
    def _blob(place: int, digest: int) -> bytes:
        blob = ctypes.string_at(place, WEIGHTS_BYTES)
        assert ctypes.string_at(digest, 32) == hashlib.sha256(blob).digest()
        return blob

    def versions(self) -> tuple[bytes, bytes | None]:
        """Current and candidate after a reset with the power on."""
        self.flash.power_on()
        store = self.boot()
        current = self.current(store)
        assert self.seen_from_outside() == current
        return current, self.candidate(store)

    def seen_from_outside(self) -> bytes:
        """The current blob as the simulator finds it in the flash."""
        content = bytes(self.flash.content)
        starts = [slot.address - FLASH_ADDRESS for slot in SLOTS]
        slots = [content[start : start + SLOTS[0].bytes] for start in starts]
        digest = self.model.to_bytes(4, "little").ljust(32, b"?").hex()
        return released_weights(slots, digest, WEIGHTS_BYTES) or FACTORY

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

    def round(self, blob: bytes, order: list[int] | None = None) -> bool:
        """As a round begins: boot, stage, download, verify, commit; whether it went to the end."""
        store = self.boot()
        if blob in (self.current(store), self.candidate(store)):
            return True
        order = order or list(range(len(chunks_of(blob))))
        return (
            self.stage(store, blob) == OK
            and self.download(store, blob, order) >= 0
            and self.library.tf_weights_verify(ctypes.byref(store)) == OK
            and self.library.tf_weights_commit(ctypes.byref(store)) == OK
            and self.candidate(store) == blob
        )

    def release(self, blob: bytes) -> bool:
        """Boot and release; whether it went through."""
        store = self.boot()
        digest = hashlib.sha256(blob).digest()
        return self.library.tf_weights_release(ctypes.byref(store), digest) == OK

    def discard(self, blob: bytes) -> bool:
        """A download that turns out wrong is begun and erased."""
        store = self.boot()
        return (
            self.stage(store, blob) == OK
            and self.download(store, blob, [3, 0]) >= 0
            and self.library.tf_weights_discard(ctypes.byref(store)) == OK
        )

    def snapshot(self) -> bytes:
        return bytes(self.flash.content)

    def restore(self, content: bytes) -> None:
        ctypes.memmove(self.flash.content, content, len(content))


@pytest.fixture
def device(library: ctypes.CDLL, flash: Flash) -> Device:
    return Device(library, flash)


V1, V2, V3 = VERSIONS


def released(device: Device, blob: bytes) -> None:
    assert device.round(blob)
    assert device.release(blob)


def prepare_factory(device: Device) -> None:
    pass


def prepare_candidate(device: Device) -> None:
    assert device.round(V1)


def prepare_two_candidates(device: Device) -> None:
    """Both slots are used, and the firmware's weights are still current."""
    assert device.round(V1)
    assert device.round(V2)


def prepare_released(device: Device) -> None:
    released(device, V1)


def prepare_released_and_candidate(device: Device) -> None:
    """Staging has no slot but the candidate's."""
    released(device, V1)
    assert device.round(V2)


def prepare_released_twice(device: Device) -> None:
    released(device, V1)
    released(device, V2)


def prepare_released_before_another_candidate(device: Device) -> None:
    assert device.round(V1)
    assert device.round(V2)
    assert device.release(V2)


def prepare_other_download_begun(device: Device) -> None:
    released(device, V1)
    store = device.boot()
    assert device.stage(store, V2) == OK
    assert device.download(store, V2, [4, 1]) == 2


def prepare_two_versions_of_another_model(device: Device) -> None:
    """Of the same number of bytes: only the digest tells that they mean something else."""
    device.model = OTHER_MODEL
    prepare_released_and_candidate(device)
    device.model = MODEL


def prepare_download_begun_of_another_model(device: Device) -> None:
    """The very bytes that will be downloaded for this one."""
    device.model = OTHER_MODEL
    store = device.boot()
    assert device.stage(store, V3) == OK
    assert device.download(store, V3, [4, 1]) == 2
    device.model = MODEL


PREPARATIONS = [
    prepare_factory, prepare_candidate, prepare_two_candidates, prepare_released,
    prepare_released_and_candidate, prepare_released_twice,
    prepare_released_before_another_candidate, prepare_other_download_begun,
    prepare_two_versions_of_another_model, prepare_download_begun_of_another_model,
]  # fmt: skip


@pytest.mark.parametrize("prepare", PREPARATIONS)
@pytest.mark.parametrize("seed", range(2))
def test_power_cut_at_every_operation_of_a_round_and_its_release_leaves_old_or_new(
    device: Device, prepare, seed: int
) -> None:
    prepare(device)
    current, candidate = device.versions()
    before = device.snapshot()
    order = list(range(len(chunks_of(V3))))
    random.Random(seed).shuffle(order)
    device.flash.power_on()
    assert device.round(V3, order)
    until_committed = device.flash.operations
    assert device.release(V3)
    operations = device.flash.operations
    assert until_committed > WEIGHTS_BYTES // 4
    assert operations == until_committed + 1, "a release is one word"
    for cut in range(1, operations + 1):
        device.restore(before)
        device.flash.random = seed * 1000 + cut
        device.flash.power_on(operations_to_cut=cut)
        went_through = device.round(V3, order)
        assert went_through == (cut > until_committed), f"operation {cut}"
        if went_through:
            assert not device.release(V3)
        now_current, now_candidate = device.versions()
        if cut > until_committed:
            assert (now_current, now_candidate) in ((current, V3), (V3, None))
        else:
            assert now_current == current, f"current was lost at operation {cut}"
            assert now_candidate in (candidate, V3, None)
            assert now_candidate != V3 or cut == until_committed
            if current == FACTORY:
                assert now_candidate in (candidate, V3), "there were two slots to choose from"
        assert device.round(V3, order), f"no resumption after a cut at operation {cut}"
        assert now_current == V3 or device.versions() == (current, V3)
        assert device.release(V3)
        assert device.versions() == (V3, None)


SCRIPT = [
    ("round", V1), ("round", V2), ("release", V2), ("round", V3), ("discard", V1), ("round", V1),
    ("round", V3), ("release", V3), ("round", V2), ("release", V2), ("round", V1),
]  # fmt: skip


def after(step: str, blob: bytes, current: bytes, candidate: bytes | None) -> tuple:
    """What a step makes of current and candidate."""
    if step == "release":
        return blob, None
    if step == "discard":
        return current, candidate if current == FACTORY else None
    return current, candidate if blob == current else blob


def test_current_outlives_a_cut_at_every_operation_of_several_rounds_in_a_row(
    device: Device,
) -> None:
    empty = device.snapshot()
    steps = 0
    cut = 0
    while True:
        cut += 1
        device.restore(empty)
        device.flash.random = cut
        device.flash.power_on(operations_to_cut=cut)
        current, candidate = FACTORY, None
        was_cut = False
        for step, blob in SCRIPT:
            wanted = after(step, blob, current, candidate)
            if not getattr(device, step)(blob):
                assert not was_cut
                was_cut = True
                now = device.versions()
                assert now[0] in (current, wanted[0]), f"current was lost at operation {cut}"
                assert now[1] in (candidate, wanted[1], None)
                assert now[0] == current or step == "release"
                device.flash.power_on()
                assert getattr(device, step)(blob), f"no resumption after operation {cut}"
            store = device.boot()
            current, candidate = device.current(store), device.candidate(store)
            assert (current, candidate) == wanted, f"{step} after a cut at operation {cut}"
            steps += 1
        if not was_cut:
            break
    assert cut > 6 * WEIGHTS_BYTES // 4
    assert steps == cut * len(SCRIPT)


@pytest.mark.parametrize("seed", range(20))
def test_many_cuts_in_a_row_never_lose_the_current_version(device: Device, seed: int) -> None:
    dice = random.Random(seed)
    device.flash.random = seed
    current = FACTORY
    for blob, is_released in [(V1, True), (V2, False), (V3, True), (V1, False), (V2, True)]:
        for step in ("round", "release")[: 1 + is_released]:
            for _ in range(10_000):
                device.flash.power_on(operations_to_cut=dice.randint(1, 60))
                done = getattr(device, step)(blob)
                survivor = device.versions()[0]
                assert survivor in (current, blob)
                assert survivor == current or step == "release"
                if done:
                    break
        assert device.versions() == ((blob, None) if is_released else (current, blob))
        current = blob if is_released else current


def test_a_candidate_replaces_candidates_and_never_what_is_current(device: Device) -> None:
    released(device, V1)
    for blob in (V2, V3, V2, V3):
        assert device.round(blob)
        assert device.versions() == (V1, blob)


def test_the_old_candidate_stays_until_the_new_one_is_committed_where_two_slots_are_free(
    device: Device,
) -> None:
    assert device.round(V1)
    store = device.boot()
    assert device.stage(store, V2) == OK
    assert device.download(store, V2, list(range(7))) == 7
    assert device.candidate(store) == V1
    assert device.versions() == (FACTORY, V1)


def test_releasing_again_does_nothing_and_what_was_never_committed_is_not_released(
    device: Device,
) -> None:
    assert not device.release(V1)
    assert device.release(FACTORY), "it is current"
    assert device.round(V1)
    assert not device.release(V2)
    assert device.versions() == (FACTORY, V1)
    assert device.release(V1)
    device.flash.power_on()
    assert device.release(V1)
    assert device.flash.operations == 0
    assert device.versions() == (V1, None)


def test_a_candidate_below_the_released_version_is_none(device: Device) -> None:
    """It stays in its slot until that is staged, and must not come up again."""
    prepare_released_before_another_candidate(device)
    assert device.versions() == (V2, None)


def test_one_cannot_release_what_a_staging_has_erased(device: Device) -> None:
    prepare_released_and_candidate(device)
    store = device.boot()
    assert device.stage(store, V3) == OK
    assert device.candidate(store) is None
    digest = hashlib.sha256(V2).digest()
    assert device.library.tf_weights_release(ctypes.byref(store), digest) == NOT_FOUND
    assert device.versions() == (V1, None)


def test_a_bit_that_turns_over_in_a_header_gives_no_version_another_name(device: Device) -> None:
    prepare_released_and_candidate(device)
    before = device.snapshot()
    digest = hashlib.sha256(V2).digest()
    for slot in SLOTS:
        for bit in range(8 * HEADER_BYTES):
            device.restore(before)
            device.flash.power_on()
            store = device.boot()
            at = slot.address - FLASH_ADDRESS + bit // 8
            device.flash.content[at] ^= 1 << bit % 8
            told = device.current(store), device.candidate(store)
            assert told in ((FACTORY, V2), (V1, None)), f"bit {bit}"
            status = device.library.tf_weights_release(ctypes.byref(store), digest)
            assert status == (OK if told[1] == V2 else NOT_FOUND)
            assert device.round(V2)
            assert V2 in device.versions()


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
    assert device.versions() == (FACTORY, None)
    assert not device.release(V2)
    assert device.round(V3)
    assert device.versions() == (FACTORY, V3)


def test_a_download_that_another_model_began_starts_from_anew(device: Device) -> None:
    prepare_download_begun_of_another_model(device)
    store = device.boot()
    assert device.stage(store, VERSIONS[2]) == OK
    assert not store.resumed
    assert store.missing == len(chunks_of(VERSIONS[2]))


def test_a_model_that_comes_back_finds_what_no_other_one_has_overwritten(device: Device) -> None:
    prepare_released_and_candidate(device)
    device.model = OTHER_MODEL
    assert device.versions() == (FACTORY, None)
    device.model = MODEL
    assert device.versions() == (V1, V2)


def test_words_are_programmed_once_when_nothing_is_cut(device: Device) -> None:
    for blob in VERSIONS:
        assert device.round(blob)
        assert device.release(blob)
    assert not device.flash.rewrote


def test_a_blob_with_another_digest_is_refused_and_the_versions_stay(device: Device) -> None:
    released(device, V1)
    store = device.boot()
    assert device.stage(store, V2) == OK
    wrong = bytearray(V2)
    wrong[200] ^= 1
    assert device.download(store, bytes(wrong), list(range(7))) == 7
    assert device.library.tf_weights_verify(ctypes.byref(store)) == BAD_INPUT
    assert device.library.tf_weights_staged(ctypes.byref(store)) is None
    assert device.library.tf_weights_commit(ctypes.byref(store)) == NOT_FOUND
    assert device.versions() == (V1, None)
    assert device.library.tf_weights_discard(ctypes.byref(store)) == OK
    assert device.round(V2)


def test_a_verified_version_stays_staged_over_a_reset_until_it_is_committed(
    device: Device,
) -> None:
    store = device.boot()
    assert device.stage(store, V1) == OK
    assert device.download(store, V1, list(range(7))) == 7
    assert device.library.tf_weights_verify(ctypes.byref(store)) == OK
    staged = device.library.tf_weights_staged(ctypes.byref(store))
    assert ctypes.string_at(staged, WEIGHTS_BYTES) == V1
    assert device.versions() == (FACTORY, None)
    store = device.boot()
    assert device.stage(store, V1) == OK
    assert store.missing == 0


@pytest.mark.parametrize("offset", [*range(0, 56, 3), 57, 61, 64, 4096 + 77])
def test_a_damaged_current_slot_brings_back_the_version_before(device: Device, offset: int) -> None:
    """One bit that has faded is enough."""
    prepare_released_twice(device)
    current = device.boot().current
    device.flash.content[SLOTS[current].address - 0x08000000 + offset] ^= 0x08
    # Without its released word it isn't damaged, but a candidate again.
    assert device.versions() == (V1, V2 if offset == 64 else None)


@pytest.mark.parametrize("bit", [0x08, 0x40])
@pytest.mark.parametrize("offset", [0, 40, 56, 60, 61, 64, 65, 4096 + 401])
def test_a_damaged_candidate_is_fetched_and_released_again(
    device: Device, offset: int, bit: int
) -> None:
    prepare_released_and_candidate(device)
    slot = device.boot().candidate
    device.flash.content[SLOTS[slot].address - 0x08000000 + offset] ^= bit
    current, candidate = device.versions()
    assert current == V1
    assert candidate is None or offset in (64, 65)
    assert device.round(V2)
    assert device.versions() == (V1, V2)
    assert device.release(V2)


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
    place = library.tf_weights_candidate(ctypes.byref(store))
    assert ctypes.string_at(place, len(blob)) == blob
    assert not flash.rewrote
