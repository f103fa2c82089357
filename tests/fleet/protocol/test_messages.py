"""Messages: one encoding each, and the fast checks agree with the CDDL itself."""

from __future__ import annotations

import string
from dataclasses import fields
from typing import Annotated, Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fleet.errors import ProtocolError
from fleet.protocol import (
    Action,
    Announce,
    Delta,
    DeviceState,
    Message,
    ReceiptResult,
    ResetCause,
    Status,
    Task,
    number_name,
    reason_name,
    state_name,
)
from fleet.protocol.fields import CHUNK_BYTES, EPOCHS, MAX_KEYRING_BYTES, NAME_PATTERN
from fleet.protocol.messages import MAX_PACKET_BYTES, MESSAGES
from fleet.protocol.schema import validate
from tests.conftest import examples

names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=32)


def uint(bits: int) -> st.SearchStrategy[int]:
    top = 2**bits - 1
    return st.one_of(st.sampled_from([0, 23, 24, top]), st.integers(0, top))


digests = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=8, max_size=8)
percents = uint(8)

weeks = st.one_of(st.sampled_from([0, 1, 604_800]), st.integers(0, 604_800))
chunk_sizes = st.integers(4, 128).map(lambda quarter: quarter * 4)

VALUES: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "announce": (
        *(names, digests, digests, digests, uint(32), uint(32), percents, uint(32)),
        *(uint(16), uint(16), uint(8), uint(8), uint(32), uint(32)),
    ),
    "task": (
        *(uint(32), ids, uint(32), st.just(Action.TRAIN.value), digests, digests, uint(32)),
        *(chunk_sizes, st.integers(1, 255), uint(32), uint(32), uint(8), uint(8)),
        *(st.integers(64, 16384), weeks, st.integers(0, 1000), weeks, uint(8), uint(8), uint(16)),
        *(uint(32), uint(16), uint(32), uint(16), ids, st.binary(max_size=256)),
        st.binary(max_size=64),
    ),
    "delta": (
        *(uint(32), ids, uint(32), ids, ids, uint(8), uint(8), uint(16), uint(16), uint(32)),
        *(uint(32), uint(16), uint(32), uint(16), uint(16), uint(16), uint(32), uint(32)),
        *(uint(16), uint(8)),
        st.one_of(st.binary(max_size=512), st.integers(0, 16384).map(bytes)),
    ),
    "receipt": (uint(32), ids, uint(32), uint(8), uint(32)),
    "status": (uint(8), uint(8), ids, uint(32), percents),
    "identity": (
        names,
        names,
        st.text(string.printable, min_size=1, max_size=64),
        uint(32),
        uint(32),
    ),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(sorted(MESSAGES)))
    return MESSAGES[kind](*(draw(value) for value in VALUES[kind]))


def own_verdict(kind: str, data: bytes) -> bool:
    try:
        MESSAGES[kind].decode(data)
    except ProtocolError:
        return False
    return True


def cddl_verdict(kind: str, data: bytes) -> bool:
    try:
        validate(kind, data)
    except ProtocolError:
        return False
    return True


@given(messages())
def test_every_message_comes_back_and_fits_the_cddl(message: Message) -> None:
    data = message.encode()
    assert type(message).decode(data) == message
    seen = validate(message.KIND, data)
    # Same names in the same order as in the CDDL (which zcbor gives without the constant).
    assert list(seen) == [field.name for field in fields(message)]
    assert list(seen.values()) == [getattr(message, field.name) for field in fields(message)]


odd_values = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**8, 2**16, 2**32, 101, -1, True, False, None, 1.0, float("nan")]),
    st.binary(max_size=600),
    st.text(max_size=40),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.integers(), st.integers(), max_size=2),
    st.builds(cbor2.CBORTag, st.integers(100, 200), st.integers()),
)


@given(messages(), odd_values, st.data())
@examples(300)
def test_a_message_with_an_odd_value_is_judged_as_the_cddl_judges_it(
    message: Message, odd: Any, data: st.DataObject
) -> None:
    values = cbor2.loads(message.encode())
    place = data.draw(st.integers(0, len(values) - 1))
    values[place] = odd
    changed = cbor2.dumps(values)
    own, cddl = own_verdict(message.KIND, changed), cddl_verdict(message.KIND, changed)
    if message.KIND == "task" and isinstance(odd, int):
        # Nor can it say that chunks are multiples of 4, and which actions have epochs.
        assert cddl or not own
    elif isinstance(odd, str):
        # The CDDL can't say which letters a name has, and zcbor counts letters, not bytes.
        assert cddl or not own
        if NAME_PATTERN.fullmatch(odd):
            assert own == cddl
    else:
        assert own == cddl


@given(messages(), st.lists(st.integers(0, 10), max_size=3), st.booleans())
def test_a_message_with_more_or_fewer_fields_is_refused_by_both(
    message: Message, more: list[int], cut: bool
) -> None:
    values = cbor2.loads(message.encode())
    values = values[:-1] if cut else [*values, *more]
    changed = cbor2.dumps(values)
    same = changed == message.encode()
    assert own_verdict(message.KIND, changed) is same
    assert cddl_verdict(message.KIND, changed) is same


@given(messages(), st.integers(0, 4000), st.integers(0, 255))
@examples(300)
def test_a_message_with_a_changed_byte_is_the_only_encoding_of_what_it_says_or_refused(
    message: Message, place: int, byte: int
) -> None:
    data = bytearray(message.encode())
    data[place % len(data)] = byte
    kind = type(message)
    try:
        decoded = kind.decode(bytes(data))
    except ProtocolError:
        return
    assert decoded.encode() == bytes(data)
    assert cddl_verdict(message.KIND, bytes(data))


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=900))
@example("delta", b"\x9b" + b"\xff" * 8)  # an array of 2^64-1 elements
@example("delta", b"\x81" * 700)  # nested 700 deep
@example("delta", b"\x91\x01\x5b\x7f\xff\xff\xff\xff\xff\xff\xff")  # bytes without end
@example("status", b"\x87\xc0\x61x")  # tag 0: a date that is none
@example("status", b"\x87\xd8\x1c\x80")  # tag 28: shared reference
@example("task", b"")
def test_no_bytes_whatever_raise_anything_but_a_protocol_error(kind: str, data: bytes) -> None:
    own_verdict(kind, data)


def sample() -> Status:
    return Status(DeviceState.TRAINING, 0, bytes(8), 3, 55)


def test_the_encoding_of_a_status_is_this_one() -> None:
    assert sample().encode() == bytes.fromhex("8603040048" + "00" * 8 + "031837")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d + b"\x00", "1 bytes are left over"),
        (lambda d: d[:-1], "is no CBOR"),
        (lambda d: b"\x9f" + d[1:] + b"\xff", "shortest"),
        (lambda d: d.replace(b"\x18\x37", b"\x19\x00\x37"), "shortest"),
        (lambda d: b"\xc1" + d, "an array is wanted"),
        (lambda d: b"\x86\x01" + d[2:], "status.protocol: must be 3"),
        (lambda d: d[:-2] + b"\x19\x01\x65", "status.battery: 357 is outside"),
        (lambda d: d[:4] + b"\x47" + d[6:], "status.campaign: has 7 bytes"),
        (lambda d: bytes(2000), "2000 bytes, at most 768"),
    ],
)
def test_a_refusal_names_message_field_and_problem(change: Any, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        Status.decode(change(sample().encode()))


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "lease": 1,
        "campaign": bytes(8),
        "round": 1,
        "action": Action.TRAIN,
        "plan": bytes(32),
        "weights": bytes(32),
        "weights_bytes": 1,
        "chunk_bytes": 512,
        "epochs": 1,
        "learning_rate_q20": 1,
        "seed": 1,
        "coding": 0,
        "weighting": 0,
        "uplink_chunk_bytes": 512,
        "deadline_seconds": 1,
        "max_score_drop_permille": 1,
        "check_in_seconds": 1,
    }
    return Task(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 2**32}, r"task\.seed: 4294967296 is outside"),
        ({"chunk_bytes": 66}, r"task\.chunk_bytes: 66 is no multiple of 4"),
        ({"chunk_bytes": 516}, r"task\.chunk_bytes: 516 is outside 16 … 512"),
        ({"uplink_chunk_bytes": 63}, r"task\.uplink_chunk_bytes: 63 is outside 64 … 16384"),
        ({"deadline_seconds": 99_999_999_999}, r"task\.deadline_seconds: .* 0 … 604800"),
        ({"max_score_drop_permille": 1001}, r"task\.max_score_drop_permille: 1001 is outside"),
        ({"signature": bytes(65)}, r"task\.signature: has 65 bytes"),
        ({"epochs": 0}, r"task\.epochs: training takes at least 1"),
        ({"action": Action.SCORE}, r"task\.epochs: must be 0 to score, not 1"),
        ({"action": Action.RELEASE}, r"task\.epochs: must be 0 to score, not 1"),
        ({"lease": -1}, r"task\.lease: -1 is outside"),
    ],
)
def test_a_task_that_no_device_would_take_cannot_be_made(changes: Any, problem: str) -> None:
    assert task().encode()
    with pytest.raises(ProtocolError, match=problem):
        task(**changes)


def test_what_a_message_says_wrong_is_named() -> None:
    with pytest.raises(ProtocolError, match=r"announce\.bundle: has 31 bytes, 32 are allowed"):
        Announce("board", bytes(31), bytes(32), bytes(32), 0, 1, 1, 1, 1, 1, 0, 0, 0)


def test_a_message_of_version_1_is_refused_by_its_version() -> None:
    with pytest.raises(ProtocolError, match=r"status\.protocol: must be 3, not 1"):
        Status.decode(bytes.fromhex("870165636f772d37040048" + "00" * 8 + "031837"))


def test_a_task_with_its_topics_fits_the_packets_that_devices_take() -> None:
    top = 2**32 - 1
    largest = task(
        lease=top,
        round=top,
        weights_bytes=top,
        learning_rate_q20=top,
        seed=top,
        deadline_seconds=604_800,
        check_in_seconds=604_800,
        max_score_drop_permille=1000,
        mask_bits=32,
        value_bound=2**16 - 1,
        clip=top,
        norm_share=2**16 - 1,
        noise_variance=top,
        least_devices=2**16 - 1,
        personal=255,
        keyring=bytes(MAX_KEYRING_BYTES),
        signature=bytes(64),
        epochs=255,
    )
    topics_bytes = len("fleet//to//task") + len("fleet//gw///delta") + 5 * 32
    assert len(largest.encode()) + topics_bytes + 32 < MAX_PACKET_BYTES


def test_the_head_of_the_largest_delta_is_as_long_as_said() -> None:
    top, most = [2**16 - 1] * 2, 2**32 - 1
    delta = Delta(
        *(most, b"c" * 8, most, b"p" * 8, b"w" * 8, 255, 255, *top, most, most),
        *(2**16 - 1, most, 2**16 - 1, *top, most, most, 2**16 - 1, 255, b"x" * 16384),
    )
    assert len(delta.encode()) <= Delta.MAX_BYTES
    assert Delta.decode(delta.encode()) == delta


def test_unknown_states_and_reasons_keep_their_number() -> None:
    assert (state_name(4), state_name(99)) == ("training", "state-99")
    assert (reason_name(5), reason_name(99)) == ("score-dropped", "reason-99")
    assert (reason_name(13), reason_name(14)) == ("older-lease", "refused-by-gateway")
    assert number_name(ReceiptResult, 2) == "late"
    assert number_name(ResetCause, 9) == "reset-9"


class Settings(BaseModel):
    epochs: Annotated[int, EPOCHS.field(least=1)]
    chunk_bytes: Annotated[int, CHUNK_BYTES.field()]


@pytest.mark.parametrize(
    ("epochs", "chunk_bytes", "fits"),
    [(1, 512, True), (0, 512, False), (255, 16, True), (256, 16, False), (1, 18, False)],
)
def test_a_model_of_pydantic_has_the_ranges_of_the_messages(
    epochs: int, chunk_bytes: int, fits: bool
) -> None:
    if fits:
        Settings(epochs=epochs, chunk_bytes=chunk_bytes)
        return
    with pytest.raises(ValidationError):
        Settings(epochs=epochs, chunk_bytes=chunk_bytes)
