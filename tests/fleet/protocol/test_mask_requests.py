"""Requests for masks: one reading each, and hostile bytes are refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import MaskRefusedError, ProtocolError
from fleet.protocol import mask_requests
from fleet.protocol.mask_requests import MaskMember, MaskRequest, UnmaskerFacts
from fleet.protocol.masking import MASK_BITS, MaskParameters
from tests.conftest import examples

MEMBERS = tuple(MaskMember(f"cow-{n}", bytes([n]) * 12, bytes([n]) * 48) for n in range(3))
REQUEST = MaskRequest(
    *(bytes(range(8)), 3, bytes(32), bytes(range(32)), 1000),
    MaskParameters(16, 127, 900, 5, 40, 3),
    MEMBERS,
)


def test_a_request_comes_back_whatever_the_order_of_its_fields() -> None:
    data = REQUEST.encode()
    assert MaskRequest.decode(data) == REQUEST
    turned = cbor2.dumps(dict(reversed(cbor2.loads(data).items())))
    assert turned != data
    assert MaskRequest.decode(turned) == REQUEST
    assert MaskRequest.decode(turned).digest() == REQUEST.digest()


def test_every_field_counts_for_which_request_it_is() -> None:
    of = REQUEST.parameters
    others = [
        *(replace(REQUEST, campaign=bytes(8)), replace(REQUEST, round=4)),
        *(replace(REQUEST, plan=bytes(range(32))), replace(REQUEST, weights=bytes(32))),
        *(replace(REQUEST, values=999), replace(REQUEST, members=MEMBERS[:2])),
        replace(REQUEST, members=(*MEMBERS[:2], replace(MEMBERS[2], nonce=bytes(12)))),
        replace(REQUEST, members=(*MEMBERS[:2], replace(MEMBERS[2], seal=bytes(48)))),
        *(
            replace(REQUEST, parameters=replace(of, **{name: getattr(of, name) + 8}))
            for name in vars(of)
        ),
    ]
    assert len({one.digest() for one in (REQUEST, *others)}) == 1 + len(others)


def changed(**changes: Any) -> bytes:
    return cbor2.dumps({**cbor2.loads(REQUEST.encode()), **changes})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (changed(bits=12), "bits"),
        (changed(bits=16.0), "bits: an integer"),
        (changed(bits=0), "bits"),
        (changed(values=0), "values"),
        (changed(values=(1 << 24) + 1), "values"),
        (changed(value_bound=0), "value_bound"),
        (changed(noise_variance=3), "noise_variance"),
        (changed(noise_variance=True), "noise_variance"),
        (changed(norm_share=128), "norm_share"),
        (changed(clip=0), "wants a clip"),
        (changed(campaign=bytes(7)), "campaign"),
        (changed(round=-1), "round"),
        (changed(plan="a" * 32), "plan"),
        (changed(devices=[]), "0 devices"),
        (changed(devices={}), "an array"),
        (changed(devices=[["cow-1", bytes(12)]]), r"\[device, nonce, seal\]"),
        (changed(devices=[["cow/1", bytes(12), bytes(48)]]), "no name"),
        (changed(devices=[["cow-1", bytes(11), bytes(48)]]), "nonce"),
        (changed(devices=[["cow-1", bytes(12), bytes(49)]]), "seal"),
        (changed(devices=2 * [["cow-1", bytes(12), bytes(48)]]), "each once, ascending"),
        (changed(more=1), "other fields"),
        (REQUEST.encode()[:-1], "no CBOR"),
        (REQUEST.encode() + b"\0", "left over"),
        (bytes(mask_requests.MOST_REQUEST_BYTES + 1), "at most"),
    ],
)
def test_what_isnt_of_the_form_is_refused_with_its_field(data: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        MaskRequest.decode(data)


CBOR = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=64) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@examples(150)
@given(st.data())
def test_hostile_bytes_are_a_request_or_a_protocol_error(data: st.DataObject) -> None:
    whole = bytearray(REQUEST.encode())
    way = data.draw(st.sampled_from(("turned", "cut", "field", "bytes")))
    if way == "turned":
        at = data.draw(st.integers(0, 8 * len(whole) - 1))
        whole[at // 8] ^= 1 << at % 8
    elif way == "cut":
        at = data.draw(st.integers(0, len(whole)))
        whole = whole[:at] + data.draw(st.binary(max_size=40))
    elif way == "field":
        name = data.draw(st.sampled_from(sorted(cbor2.loads(bytes(whole)))))
        whole = bytearray(changed(**{name: data.draw(CBOR)}))
    else:
        whole = bytearray(data.draw(st.binary(max_size=200)))
    try:
        found = MaskRequest.decode(bytes(whole))
    except ProtocolError:
        return
    assert MaskRequest.decode(found.encode()) == found


@given(st.binary(max_size=120) | CBOR.map(cbor2.dumps))
def test_hostile_answers_are_none(data: bytes) -> None:
    for decode in (
        lambda data: mask_requests.decode_masks(data, REQUEST),
        mask_requests.decode_refusal,
        UnmaskerFacts.decode,
    ):
        with pytest.raises(ProtocolError):
            decode(data)


@pytest.mark.parametrize("bits", MASK_BITS)
def test_answers_refusals_and_facts_come_back(bits: int) -> None:
    request = replace(REQUEST, parameters=replace(REQUEST.parameters, bits=bits), values=9)
    masks = np.arange(9, dtype=np.uint32) * np.uint32((1 << bits) // 9)
    told = mask_requests.encode_masks(masks, bits)
    assert np.array_equal(mask_requests.decode_masks(told, request), masks)
    with pytest.raises(ProtocolError, match="masks"):
        mask_requests.decode_masks(told, replace(request, values=10))
    refused = MaskRefusedError("overlap", "in another set", ("cow-1",))
    again = mask_requests.decode_refusal(mask_requests.encode_refusal(refused))
    assert (again.kind, again.detail, again.devices) == ("overlap", "in another set", ("cow-1",))
    facts = UnmaskerFacts(bytes(32), "barn", 5, 24)
    assert UnmaskerFacts.decode(facts.encode()) == facts
