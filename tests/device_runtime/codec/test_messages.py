"""The device's CBOR messages against the gateway's, byte for byte, and against hostile bytes."""

from __future__ import annotations

import ctypes
import random
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
        ("device", ctypes.c_char_p),
        ("board", ctypes.c_char_p),
        ("bundle", ctypes.c_char_p),
        ("weights", ctypes.c_char_p),
        ("free_sram_bytes", ctypes.c_uint32),
        ("link_bits_per_second", ctypes.c_uint32),
        ("train_samples", ctypes.c_uint16),
        ("held_out_samples", ctypes.c_uint16),
        ("battery_percent", ctypes.c_uint8),
    )


class CTask(ctypes.Structure):
    _fields_ = (
        ("campaign", ctypes.c_uint8 * 8),
        ("plan", ctypes.c_uint8 * 32),
        ("weights", ctypes.c_uint8 * 32),
        ("round", ctypes.c_uint32),
        ("weights_bytes", ctypes.c_uint32),
        ("learning_rate_q20", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("deadline_seconds", ctypes.c_uint32),
        ("check_in_seconds", ctypes.c_uint32),
        ("chunk_bytes", ctypes.c_uint16),
        ("max_score_drop_permille", ctypes.c_uint16),
        ("epochs", ctypes.c_uint8),
    )


class CDelta(ctypes.Structure):
    _fields_ = (
        ("campaign", ctypes.c_uint8 * 8),
        ("plan", ctypes.c_uint8 * 8),
        ("weights", ctypes.c_uint8 * 8),
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
        ("coded", ctypes.c_char_p),
        ("coded_chunk_bytes", ctypes.c_uint16),
    )


class CStatus(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_char_p),
        ("campaign", ctypes.c_uint8 * 8),
        ("round", ctypes.c_uint32),
        ("state", ctypes.c_uint8),
        ("reason", ctypes.c_uint8),
        ("battery_percent", ctypes.c_uint8),
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
    "meter-1", "stm32f746", DIGEST_A, DIGEST_B, 200_000, 87, 115_200, 300, 65_535
)
TASK = messages.Task(
    CAMPAIGN, 3, DIGEST_A, DIGEST_B, 40_960, 512, 2, 10_486, 2**32 - 1, 600, 50, 30
)
DELTA = messages.Delta(
    CAMPAIGN, 3, DIGEST_A[:8], DIGEST_B[:8], 1, 2, 700, 0xDEADBEEF, 60, 120, 30, 15, 25, 1800,
    900, bytes(188),
)  # fmt: skip
STATUS = messages.Status("meter-1", 4, 0, CAMPAIGN, 3, 87)
IDENTITY = messages.Identity("meter-1", "north", "geheim-ß", 0, 115_200)
ENCODED = {"announce": ANNOUNCE, "delta": DELTA, "status": STATUS}
STRUCTS: dict[str, Any] = {
    "announce": CAnnounce,
    "delta": CDelta,
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


def encode(library: ctypes.CDLL, kind: str, struct: Any, capacity: int = 1024) -> bytes | int:
    out = ctypes.create_string_buffer(capacity + 16)
    out[capacity : capacity + 16] = b"\xa5" * 16
    length = ctypes.c_size_t()
    status = getattr(library, f"tf_encode_{kind}")(
        ctypes.byref(struct), out, ctypes.c_size_t(capacity), ctypes.byref(length)
    )
    assert out.raw[capacity : capacity + 16] == b"\xa5" * 16, "wrote behind the buffer"
    return out.raw[: length.value] if status == TF_OK else int(status)


def decode(library: ctypes.CDLL, kind: str, data: bytes) -> messages.Message | None:
    struct = STRUCTS[kind]()
    status = getattr(library, f"tf_decode_{kind}")(
        data, ctypes.c_size_t(len(data)), ctypes.byref(struct)
    )
    assert status in (TF_OK, TF_BAD_INPUT)
    return from_struct(kind, struct) if status == TF_OK else None


@pytest.mark.parametrize("kind", ENCODED)
def test_device_encodes_as_the_gateway_does(library: ctypes.CDLL, kind: str) -> None:
    assert encode(library, kind, to_struct(ENCODED[kind])) == ENCODED[kind].encode()


@pytest.mark.parametrize("kind", ENCODED)
def test_buffer_that_is_too_small_is_told_and_never_overrun(
    library: ctypes.CDLL, kind: str
) -> None:
    whole = ENCODED[kind].encode()
    for capacity in range(len(whole)):
        assert encode(library, kind, to_struct(ENCODED[kind]), capacity) == TF_NO_MEMORY
    assert encode(library, kind, to_struct(ENCODED[kind]), len(whole)) == whole


def test_announced_buffer_sizes_hold_the_longest_messages(library: ctypes.CDLL) -> None:
    top = 2**32 - 1
    announce = messages.Announce(
        "d" * 32, "b" * 32, DIGEST_A, DIGEST_B, top, 100, top, 65535, 65535
    )
    status = messages.Status("d" * 32, 255, 255, CAMPAIGN, top, 100)
    delta = messages.Delta(
        CAMPAIGN, top, DIGEST_A[:8], DIGEST_B[:8], 65535, 65535, top, top, 65535, top, 65535,
        65535, 65535, top, top, bytes(512),
    )  # fmt: skip
    header = (RUNTIME / "include" / "tinyfleet" / "messages.h").read_text()
    for message in (announce, status, delta):
        define = f"#define TF_{message.KIND.upper()}_MESSAGE_BYTES "
        limit = int(header.split(define)[1].split("u")[0])
        assert encode(library, message.KIND, to_struct(message), limit) == message.encode()


def test_empty_delta_needs_no_address_for_its_bytes(library: ctypes.CDLL) -> None:
    message = messages.Delta(*[*DELTA.__dict__.values()][:-1], b"")
    struct = to_struct(message)
    struct.coded = None
    assert encode(library, "delta", struct) == message.encode()


@pytest.mark.parametrize("device", [b"", b"d" * 33, b"a/b", b"a+", b"\xc3\xa4", b"a b", None])
def test_names_outside_the_specification_are_not_sent(
    library: ctypes.CDLL, device: bytes | None
) -> None:
    for message in (ANNOUNCE, STATUS):
        struct = to_struct(message)
        struct.device = device
        assert encode(library, message.KIND, struct) == TF_BAD_INPUT


def test_fields_out_of_range_are_not_sent(library: ctypes.CDLL) -> None:
    status, delta = to_struct(STATUS), to_struct(DELTA)
    status.battery_percent = 101
    delta.coded = bytes(513)
    delta.coded_chunk_bytes = 513
    assert encode(library, "status", status) == TF_BAD_INPUT
    assert encode(library, "delta", delta) == TF_BAD_INPUT


@pytest.mark.parametrize("message", [TASK, IDENTITY], ids=["task", "identity"])
def test_device_reads_what_the_gateway_writes(
    library: ctypes.CDLL, message: messages.Message
) -> None:
    assert decode(library, message.KIND, message.encode()) == message


@pytest.mark.parametrize("message", [TASK, IDENTITY], ids=["task", "identity"])
def test_cut_and_lengthened_messages_are_refused(
    library: ctypes.CDLL, message: messages.Message
) -> None:
    whole = message.encode()
    for length in range(len(whole)):
        assert decode(library, message.KIND, whole[:length]) is None
    assert decode(library, message.KIND, whole + b"\0") is None
    assert decode(library, message.KIND, whole + whole) is None


def task_fields() -> list[Any]:
    return list(cbor2.loads(TASK.encode()))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 2),  # another protocol version
        (1, bytes(7)),
        (1, bytes(9)),
        (1, "a" * 8),  # text instead of bytes
        (2, -1),
        (2, 2**32),
        (3, bytes(31)),
        (6, 65536),
        (7, 256),
        (8, 0.5),
        (9, None),
        (10, [1]),
        (11, 65536),
        (12, 2**64 - 1),
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
    assert decode(library, "task", b"\x98\x0d" + body) is None, "length in two bytes"
    assert decode(library, "task", b"\x8d\x18\x01" + body[1:]) is None, "1 in two bytes"
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


@pytest.mark.parametrize("message", [TASK, IDENTITY], ids=["task", "identity"])
def test_changed_bytes_are_judged_as_the_gateway_judges_them(
    library: ctypes.CDLL, message: messages.Message
) -> None:
    draw = random.Random(5)
    taken = 0
    for _ in range(2000):
        data = bytearray(message.encode())
        for _ in range(draw.randint(1, 2)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            expected: messages.Message | None = messages.MESSAGES[message.KIND].decode(bytes(data))
        except Exception:
            expected = None
        if message.KIND == "identity" and expected is None:
            continue  # a password that is no UTF-8 is the device's own affair
        if message.KIND == "identity" and "\0" in expected.password:  # type: ignore[union-attr]
            continue
        assert decode(library, message.KIND, bytes(data)) == expected
        taken += expected is not None
    assert taken > 100


def test_header_layouts_are_those_used_here(library: ctypes.CDLL, tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    names = ["tf_announce", "tf_delta", "tf_device_status", "tf_task", "tf_identity"]
    sizes = ", ".join(f"sizeof({name})" for name in names)
    source.write_text(f'#include "tinyfleet/messages.h"\nconst size_t sizes[5] = {{{sizes}}};\n')
    built = build_library(tmp_path, [source])
    measured = list((ctypes.c_size_t * 5).in_dll(built, "sizes"))
    kinds = ["announce", "delta", "status", "task", "identity"]
    assert measured == [ctypes.sizeof(STRUCTS[kind]) for kind in kinds]
