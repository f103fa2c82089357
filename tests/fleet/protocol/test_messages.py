"""Messages: one encoding each, and the fast checks agree with the CDDL itself."""

from __future__ import annotations

import string
from dataclasses import fields
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.errors import ProtocolError
from fleet.protocol import Announce, Delta, DeviceState, Message, Status, Task
from fleet.protocol.fields import NAME_PATTERN
from fleet.protocol.messages import MESSAGES, reason_name, state_name
from fleet.protocol.schema import validate
from tests.conftest import examples

names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=32)


def uint(bits: int) -> st.SearchStrategy[int]:
    top = 2**bits - 1
    return st.one_of(st.sampled_from([0, 23, 24, top]), st.integers(0, top))


digests = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=8, max_size=8)
percents = st.integers(0, 100)

VALUES: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "announce": (names, names, digests, digests, uint(32), percents, uint(32), uint(16), uint(16)),
    "task": (
        *(ids, uint(32), digests, digests, uint(32), uint(16), uint(8)),
        *(uint(32), uint(32), uint(32), uint(16), uint(32)),
    ),
    "delta": (
        *(ids, uint(32), ids, ids, uint(16), uint(16), uint(32), uint(32)),
        *(uint(16), uint(32), uint(16), uint(16), uint(16), uint(32), uint(32)),
        st.binary(max_size=512),
    ),
    "status": (names, uint(8), uint(8), ids, uint(32), percents),
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
    if isinstance(odd, str):
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
    return Status("cow-7", DeviceState.TRAINING, 0, bytes(8), 3, 55)


def test_the_encoding_of_a_status_is_this_one() -> None:
    assert sample().encode() == bytes.fromhex("870165636f772d37040048" + "00" * 8 + "031837")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d + b"\x00", "1 bytes are left over"),
        (lambda d: d[:-1], "is no CBOR"),
        (lambda d: b"\x9f" + d[1:] + b"\xff", "shortest"),
        (lambda d: d.replace(b"\x18\x37", b"\x19\x00\x37"), "shortest"),
        (lambda d: b"\xc1" + d, "an array is wanted"),
        (lambda d: b"\x87\x02" + d[2:], "status.protocol: must be 1"),
        (lambda d: d.replace(b"\x18\x37", b"\x18\x65"), "status.battery_percent: 101 is outside"),
        (lambda d: d.replace(b"cow-7", b"cow+7"), "status.device: 'cow\\+7' is no name"),
        (lambda d: d.replace(b"cow-7", b"cow\xff7"), "is no CBOR"),
        (lambda d: bytes(2000), "2000 bytes, at most 768"),
    ],
)
def test_a_refusal_names_message_field_and_problem(change: Any, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        Status.decode(change(sample().encode()))


def test_a_message_that_could_not_be_encoded_cannot_be_made() -> None:
    with pytest.raises(ProtocolError, match=r"task\.seed: 4294967296 is outside"):
        Task(bytes(8), 1, bytes(32), bytes(32), 1, 512, 1, 1, 2**32, 1, 1, 1)
    with pytest.raises(ProtocolError, match=r"announce\.bundle: has 31 bytes, 32 are allowed"):
        Announce("cow", "board", bytes(31), bytes(32), 1, 1, 1, 1, 1)


def test_the_largest_delta_fits_into_the_packet_size_that_devices_announce() -> None:
    top = [2**16 - 1] * 2
    delta = Delta(
        *(b"c" * 8, 2**32 - 1, b"p" * 8, b"w" * 8, *top, 2**32 - 1, 2**32 - 1, 2**16 - 1),
        *(2**32 - 1, 2**16 - 1, *top, 2**32 - 1, 2**32 - 1, b"x" * 512),
    )
    longest_topic = len("fleet//gw///delta") + 3 * 32
    assert len(delta.encode()) + longest_topic + 16 < 768


def test_unknown_states_and_reasons_keep_their_number() -> None:
    assert (state_name(4), state_name(99)) == ("training", "state-99")
    assert (reason_name(5), reason_name(99)) == ("score-dropped", "reason-99")
