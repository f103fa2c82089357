"""The device's CBOR messages against the gateway's, byte for byte, and against hostile bytes."""

from __future__ import annotations

import ctypes
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest

from codegen.emit.zcbor_codec import generate_codec
from fleet.protocol import messages
from tests.device_runtime.host_library import ROOT, RUNTIME, build_library

TF_OK, TF_NO_MEMORY, TF_BAD_INPUT = 0, 2, 4
DIGEST_A, DIGEST_B = bytes(range(32)), bytes(range(100, 132))
CAMPAIGN = bytes(range(8))


class CAnnounce(ctypes.Structure):
    _fields_ = (
        ("board", ctypes.c_char_p),
        ("bundle", ctypes.c_char_p),
        ("current", ctypes.c_char_p),
        ("candidate", ctypes.c_char_p),
        ("lease", ctypes.c_uint32),
        ("free_sram_bytes", ctypes.c_uint32),
        ("link_bits_per_second", ctypes.c_uint32),
        ("fault_pc", ctypes.c_uint32),
        ("keyring", ctypes.c_uint32),
        ("train_samples", ctypes.c_uint16),
        ("held_out_samples", ctypes.c_uint16),
        ("battery", ctypes.c_uint8),
        ("reset_cause", ctypes.c_uint8),
        ("fault_code", ctypes.c_uint8),
    )


class CTask(ctypes.Structure):
    _fields_ = (
        ("campaign", ctypes.c_uint8 * 8),
        ("plan", ctypes.c_uint8 * 32),
        ("weights", ctypes.c_uint8 * 32),
        ("lease", ctypes.c_uint32),
        ("round", ctypes.c_uint32),
        ("weights_bytes", ctypes.c_uint32),
        ("learning_rate_q20", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("deadline_seconds", ctypes.c_uint32),
        ("check_in_seconds", ctypes.c_uint32),
        ("clip", ctypes.c_uint32),
        ("noise_variance", ctypes.c_uint32),
        ("chunk_bytes", ctypes.c_uint16),
        ("uplink_chunk_bytes", ctypes.c_uint16),
        ("max_score_drop_permille", ctypes.c_uint16),
        ("value_bound", ctypes.c_uint16),
        ("norm_share", ctypes.c_uint16),
        ("least_devices", ctypes.c_uint16),
        ("unmaskers", ctypes.c_uint8 * 8),
        ("personal", ctypes.c_uint8),
        ("mask_bits", ctypes.c_uint8),
        ("action", ctypes.c_uint8),
        ("epochs", ctypes.c_uint8),
        ("coding", ctypes.c_uint8),
        ("weighting", ctypes.c_uint8),
    )


class CTaskParts(ctypes.Structure):
    _fields_ = (
        ("keyring", ctypes.c_void_p),
        ("signature", ctypes.c_void_p),
        ("keyring_bytes", ctypes.c_uint16),
        ("signature_bytes", ctypes.c_uint16),
        ("signed_bytes", ctypes.c_size_t),
    )

    def of(self, task: messages.Task, data: bytes) -> messages.Task:
        """The task with them; what is signed has to be what the coordinator signs."""
        assert data[: self.signed_bytes] + b"\x40\x40" == task.unsigned()
        return replace(
            task,
            keyring=ctypes.string_at(self.keyring, self.keyring_bytes),
            signature=ctypes.string_at(self.signature, self.signature_bytes),
        )


class CDelta(ctypes.Structure):
    _fields_ = (
        ("campaign", ctypes.c_uint8 * 8),
        ("plan", ctypes.c_uint8 * 8),
        ("weights", ctypes.c_uint8 * 8),
        ("lease", ctypes.c_uint32),
        ("round", ctypes.c_uint32),
        ("coded_bytes", ctypes.c_uint32),
        ("coded_crc32", ctypes.c_uint32),
        ("train_steps", ctypes.c_uint32),
        ("loss_before_thousandths", ctypes.c_uint32),
        ("loss_after_thousandths", ctypes.c_uint32),
        ("chunk", ctypes.c_uint16),
        ("chunks", ctypes.c_uint16),
        ("train_samples", ctypes.c_uint16),
        ("held_out_samples", ctypes.c_uint16),
        ("correct_before", ctypes.c_uint16),
        ("correct_after", ctypes.c_uint16),
        ("correct_local", ctypes.c_uint16),
        ("coded_chunk_bytes", ctypes.c_uint16),
        ("coding", ctypes.c_uint8),
        ("weighting", ctypes.c_uint8),
        ("kept", ctypes.c_uint8),
    )


class CReceipt(ctypes.Structure):
    _fields_ = (
        ("campaign", ctypes.c_uint8 * 8),
        ("lease", ctypes.c_uint32),
        ("round", ctypes.c_uint32),
        ("coded_crc32", ctypes.c_uint32),
        ("result", ctypes.c_uint8),
    )


class CStatus(ctypes.Structure):
    _fields_ = (
        ("campaign", ctypes.c_uint8 * 8),
        ("round", ctypes.c_uint32),
        ("state", ctypes.c_uint8),
        ("reason", ctypes.c_uint8),
        ("battery", ctypes.c_uint8),
    )


class CIdentity(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_char * 33),
        ("fleet", ctypes.c_char * 33),
        ("password", ctypes.c_char * 65),
        ("reserved_sram_bytes", ctypes.c_uint32),
        ("link_bits_per_second", ctypes.c_uint32),
    )


ANNOUNCE = messages.Announce(
    "stm32f746", DIGEST_A, DIGEST_B, DIGEST_A, 77, 200_000, 255, 115_200, 300, 65_535, 4, 3,
    0x0800_1234, 12,
)  # fmt: skip
TASK = messages.Task(
    7, CAMPAIGN, 3, 1, DIGEST_A, DIGEST_B, 40_960, 512, 2, 10_486, 2**32 - 1, 0, 1, 16_384, 600,
    50, 30, 2, 16, 127, 4_000, 64, 9_000, 20, b"unmasker", bytes(200), bytes(64),
)  # fmt: skip
DELTA = messages.Delta(
    7, CAMPAIGN, 3, DIGEST_A[:8], DIGEST_B[:8], 0, 1, 1, 2, 700, 0xDEADBEEF, 60, 120, 30, 15, 25,
    1800, 900, 21, 2, bytes(188),
)  # fmt: skip
RECEIPT = messages.Receipt(7, CAMPAIGN, 3, 2, 0xDEADBEEF)
STATUS = messages.Status(4, 0, CAMPAIGN, 3, 87)
IDENTITY = messages.Identity("meter-1", "north", "geheim-ß", 0, 115_200)
ENCODED: dict[str, messages.Message] = {"announce": ANNOUNCE, "delta": DELTA, "status": STATUS}
DECODED = {"task": TASK, "receipt": RECEIPT, "identity": IDENTITY}
STRUCTS: dict[str, Any] = {
    "announce": CAnnounce,
    "delta": CDelta,
    "receipt": CReceipt,
    "status": CStatus,
    "task": CTask,
    "identity": CIdentity,
}


def to_struct(message: messages.Message) -> Any:
    struct = STRUCTS[message.KIND]()
    for name, kind in struct._fields_:
        if name == "coded_chunk_bytes":
            struct.coded_chunk_bytes = len(message.coded)  # type: ignore[attr-defined]
            continue
        value = getattr(message, name)
        if isinstance(value, bytes) and kind is not ctypes.c_char_p:
            value = kind(*value)
        elif isinstance(value, str):
            value = value.encode()
        setattr(struct, name, value)
    return struct


def from_struct(kind: str, struct: Any) -> messages.Message:
    values = {}
    for name, _ in struct._fields_:
        value = getattr(struct, name)
        if isinstance(value, ctypes.Array):
            value = bytes(value)
        elif isinstance(value, bytes):
            value = value.decode()
        values[name] = value
    return messages.MESSAGES[kind](**values)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("messages")
    generated = generate_codec(ROOT / "fleet" / "protocol" / "tinyfleet.cddl", folder / "src")
    return build_library(
        folder,
        [RUNTIME / "codec" / "messages.c"],
        generated,
        ["-DZCBOR_CANONICAL", "-isystem", str(folder / "src")],
    )


def head_of(message: messages.Message) -> bytes:
    """What the device's encoder gives: of a delta everything but the coded bytes."""
    data = message.encode()
    return data[: -len(message.coded)] if getattr(message, "coded", b"") else data  # type: ignore[attr-defined]


def encode(library: ctypes.CDLL, kind: str, struct: Any, capacity: int = 1024) -> bytes | int:
    out = ctypes.create_string_buffer(capacity + 16)
    out[capacity : capacity + 16] = b"\xa5" * 16
    length = ctypes.c_size_t()
    encoder = getattr(library, "tf_encode_delta_head" if kind == "delta" else f"tf_encode_{kind}")
    status = encoder(ctypes.byref(struct), out, ctypes.c_size_t(capacity), ctypes.byref(length))
    assert out.raw[capacity : capacity + 16] == b"\xa5" * 16, "wrote behind the buffer"
    return out.raw[: length.value] if status == TF_OK else int(status)


def decode(library: ctypes.CDLL, kind: str, data: bytes) -> messages.Message | None:
    struct, parts = STRUCTS[kind](), CTaskParts()
    where = ctypes.create_string_buffer(data, len(data) or 1)
    more = [ctypes.byref(parts)] if kind == "task" else []
    status = getattr(library, f"tf_decode_{kind}")(
        where, ctypes.c_size_t(len(data)), ctypes.byref(struct), *more
    )
    assert status in (TF_OK, TF_BAD_INPUT)
    if status != TF_OK:
        return None
    message = from_struct(kind, struct)
    return parts.of(message, data) if isinstance(message, messages.Task) else message


@pytest.mark.parametrize("kind", ENCODED)
def test_device_encodes_as_the_gateway_does(library: ctypes.CDLL, kind: str) -> None:
    assert encode(library, kind, to_struct(ENCODED[kind])) == head_of(ENCODED[kind])


@pytest.mark.parametrize("kind", ENCODED)
def test_buffer_that_is_too_small_is_told_and_never_overrun(
    library: ctypes.CDLL, kind: str
) -> None:
    whole = head_of(ENCODED[kind])
    for capacity in range(len(whole)):
        assert encode(library, kind, to_struct(ENCODED[kind]), capacity) == TF_NO_MEMORY
    assert encode(library, kind, to_struct(ENCODED[kind]), len(whole)) == whole


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 16_384])
def test_the_head_of_a_delta_says_how_many_coded_bytes_follow(
    library: ctypes.CDLL, size: int
) -> None:
    message = replace(DELTA, coded=bytes(range(256)) * 64)
    message = replace(message, coded=message.coded[:size])
    head = encode(library, "delta", to_struct(message))
    assert isinstance(head, bytes)
    assert head + message.coded == message.encode()


def test_a_device_without_candidate_announces_zeros(library: ctypes.CDLL) -> None:
    struct = to_struct(ANNOUNCE)
    struct.candidate = None
    expected = replace(ANNOUNCE, candidate=messages.NO_DIGEST)
    assert encode(library, "announce", struct) == expected.encode()


def test_announced_buffer_sizes_hold_the_longest_messages(library: ctypes.CDLL) -> None:
    top = 2**32 - 1
    announce = messages.Announce(
        "b" * 32, DIGEST_A, DIGEST_B, DIGEST_B, top, top, 255, top, 65535, 65535, 255, 255, top, top
    )
    status = messages.Status(255, 255, CAMPAIGN, top, 255)
    delta = messages.Delta(
        top, CAMPAIGN, top, DIGEST_A[:8], DIGEST_B[:8], 255, 255, 65535, 65535, top, top, 65535,
        top, 65535, 65535, 65535, top, top, 65535, 255, bytes(16384),
    )  # fmt: skip
    header = (RUNTIME / "include" / "tinyfleet" / "messages.h").read_text()
    will = int(header.split("#define TF_STATUS_MESSAGE_BYTES ")[1].split("u")[0])
    for message, limit in (
        (announce, 768),  # the smallest transmit buffer that mqtt.h allows
        (status, will),
        (delta, messages.MAX_DELTA_HEAD_BYTES),
    ):
        assert encode(library, message.KIND, to_struct(message), limit) == head_of(message)


@pytest.mark.parametrize("board", [b"", b"d" * 33, b"a/b", b"a+", b"\xc3\xa4", b"a b", None])
def test_names_outside_the_specification_are_not_sent(
    library: ctypes.CDLL, board: bytes | None
) -> None:
    struct = to_struct(ANNOUNCE)
    struct.board = board
    assert encode(library, "announce", struct) == TF_BAD_INPUT


def test_more_coded_bytes_than_a_message_may_have_are_not_sent(library: ctypes.CDLL) -> None:
    delta = to_struct(DELTA)
    delta.coded_chunk_bytes = 16_385
    assert encode(library, "delta", delta) == TF_BAD_INPUT


@pytest.mark.parametrize("kind", DECODED)
def test_device_reads_what_the_gateway_writes(library: ctypes.CDLL, kind: str) -> None:
    assert decode(library, kind, DECODED[kind].encode()) == DECODED[kind]


@pytest.mark.parametrize("kind", DECODED)
def test_cut_and_lengthened_messages_are_refused(library: ctypes.CDLL, kind: str) -> None:
    whole = DECODED[kind].encode()
    for length in range(len(whole)):
        assert decode(library, kind, whole[:length]) is None
    assert decode(library, kind, whole + b"\0") is None
    assert decode(library, kind, whole + whole) is None


def task_fields() -> list[Any]:
    return list(cbor2.loads(TASK.encode()))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1),  # another protocol version
        (1, -1),
        (1, 2**32),
        (2, bytes(7)),
        (2, bytes(9)),
        (2, "a" * 8),  # text instead of bytes
        (3, 2**32),
        (4, 256),
        (4, 0),  # scores, and has epochs
        (4, 2),  # releases, and has epochs
        (5, bytes(31)),
        (8, 15),
        (8, 18),  # no multiple of 4
        (8, 516),
        (9, 0),  # trains, and has no epochs
        (9, 256),
        (10, 0.5),
        (11, None),
        (12, [1]),
        (13, 256),
        (14, 63),
        (14, 16_385),
        (15, 604_801),
        (16, 1001),
        (17, 2**64 - 1),
        (18, bytes(65)),
        (18, ""),
    ],
)
def test_task_with_a_field_out_of_range_is_refused(
    library: ctypes.CDLL, index: int, value: object
) -> None:
    fields = task_fields()
    fields[index] = value
    assert decode(library, "task", cbor2.dumps(fields)) is None


def test_task_of_another_shape_is_refused(library: ctypes.CDLL) -> None:
    fields = task_fields()
    assert decode(library, "task", cbor2.dumps(fields[:-1])) is None
    assert decode(library, "task", cbor2.dumps([*fields, 0])) is None
    assert decode(library, "task", cbor2.dumps(dict(enumerate(fields)))) is None
    assert decode(library, "task", cbor2.dumps(cbor2.CBORTag(1, fields))) is None
    body = TASK.encode()[1:]
    assert decode(library, "task", b"\x9f" + body + b"\xff") is None, "indefinite length"
    assert decode(library, "task", b"\x98\x13" + body) is None, "length in two bytes"
    assert decode(library, "task", b"\x93\x18\x02" + body[1:]) is None, "2 in two bytes"
    assert decode(library, "task", b"\x9b" + b"\xff" * 8 + body) is None, "2^64 - 1 elements"
    assert decode(library, "task", b"") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [(1, ""), (1, "a" * 33), (1, "a/b"), (1, "a\0b"), (2, "north+"), (3, ""), (3, "p" * 65),
     (3, "a\0b"), (4, 2**32)],
)  # fmt: skip
def test_identity_with_a_bad_name_or_password_is_refused(
    library: ctypes.CDLL, field: int, value: object
) -> None:
    fields = list(cbor2.loads(IDENTITY.encode()))
    fields[field] = value
    assert decode(library, "identity", cbor2.dumps(fields)) is None


@pytest.mark.parametrize("kind", DECODED)
def test_changed_bytes_are_judged_as_the_gateway_judges_them(
    library: ctypes.CDLL, kind: str
) -> None:
    draw = random.Random(5)
    taken = 0
    for _ in range(2000):
        data = bytearray(DECODED[kind].encode())
        for _ in range(draw.randint(1, 2)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            expected: messages.Message | None = messages.MESSAGES[kind].decode(bytes(data))
        except Exception:
            expected = None
        if kind == "identity" and expected is None:
            continue  # a password that is no UTF-8 is the device's own affair
        if kind == "identity" and "\0" in expected.password:  # type: ignore[union-attr]
            continue
        assert decode(library, kind, bytes(data)) == expected
        taken += expected is not None
    assert taken > 100


def test_header_layouts_are_those_used_here(library: ctypes.CDLL, tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    kinds = ["announce", "delta", "status", "task", "receipt", "identity"]
    names = ["tf_device_status" if kind == "status" else f"tf_{kind}" for kind in kinds]
    sizes = ", ".join(f"sizeof({name})" for name in names)
    source.write_text(f'#include "tinyfleet/messages.h"\nconst size_t sizes[6] = {{{sizes}}};\n')
    built = build_library(tmp_path, [source])
    measured = list((ctypes.c_size_t * 6).in_dll(built, "sizes"))
    assert measured == [ctypes.sizeof(STRUCTS[kind]) for kind in kinds]
