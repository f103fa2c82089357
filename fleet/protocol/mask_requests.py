"""What the coordinator asks an unmasker, and how that refuses: CBOR over HTTP (masking.md).

A request names the devices of a set, and has of each the nonce and the seal that came with its
masked delta. The answer is the sum of their masks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cbor2

from fleet.errors import MaskError, MaskRefusedError, ProtocolError
from fleet.protocol import fields as check
from fleet.protocol.masking import (
    MOST_DEVICES,
    NONCE_BYTES,
    SEAL_BYTES,
    Binding,
    MaskParameters,
    Words,
    pack,
    unpack,
)

CONTENT_TYPE = "application/cbor"
MALFORMED, TOO_FEW, UNKNOWN_DEVICE, BROKEN_SEAL, OVERLAP = REFUSALS = (
    *("malformed", "too-few", "unknown-device", "broken-seal", "overlap"),
)
"""Kinds of refusals."""
MOST_REQUEST_BYTES = 64 << 10
MOST_VALUES = 1 << 24
"""Of a delta whose masks are asked for, so that an answer is bounded."""
MOST_ANSWER_BYTES = (MOST_VALUES << 2) + 64

_KIND = "mask-request"
_LEAST_NOISE_VARIANCE = 4
_CHECKS: dict[str, check.FieldCheck] = {
    "campaign": check.campaign_id,
    "round": check.ROUND,
    "plan": check.digest,
    "weights": check.digest,
    "values": check.Range(1, MOST_VALUES),
    "bits": check.Range(8, 32, multiple=8),
    "value_bound": check.Range(1, check.uint16.most),
    "clip": check.uint32,
    "norm_share": check.uint16,
    "noise_variance": check.uint32,
    "least_devices": check.uint16,
}
_OF_SET = ("campaign", "round", "plan", "weights", "values")
_NONCE = check.bytes_of(NONCE_BYTES, NONCE_BYTES)
_SEAL = check.bytes_of(SEAL_BYTES, SEAL_BYTES)


@dataclass(frozen=True)
class MaskMember:
    """A device of a set, and what came with its masked delta."""

    device: str
    nonce: bytes
    seal: bytes
    """That for the unmasker who is asked."""


@dataclass(frozen=True)
class MaskRequest:
    """A request for the sum of masks of a set."""

    campaign: bytes
    round: int
    plan: bytes
    weights: bytes
    values: int
    """Of each delta, that for the norm included."""
    parameters: MaskParameters
    members: tuple[MaskMember, ...]
    """Ascending by name, each device once."""

    def __post_init__(self) -> None:
        """Refuse what isn't of this form, with a ProtocolError."""
        for name, value in self._numbers().items():
            _CHECKS[name](_KIND, name, value)
        if 0 < self.parameters.noise_variance < _LEAST_NOISE_VARIANCE:
            raise ProtocolError(_KIND, "noise_variance", "is 0, or 4 and more")
        if not 1 <= len(self.members) <= MOST_DEVICES:
            raise ProtocolError(
                _KIND, "devices", f"{len(self.members)} devices; a set has 1 … {MOST_DEVICES}"
            )
        before = ""
        for one in self.members:
            check.name(_KIND, "devices", one.device)
            _NONCE(_KIND, f"devices.{one.device}.nonce", one.nonce)
            _SEAL(_KIND, f"devices.{one.device}.seal", one.seal)
            if one.device <= before:
                raise ProtocolError(
                    _KIND, "devices", f"{one.device} isn't above {before}: each once, ascending"
                )
            before = one.device

    def _numbers(self) -> dict[str, Any]:
        of = self.parameters
        return {
            "campaign": self.campaign,
            "round": self.round,
            "plan": self.plan,
            "weights": self.weights,
            "values": self.values,
            "bits": of.bits,
            "value_bound": of.value_bound,
            "clip": of.clip,
            "norm_share": of.norm_share,
            "noise_variance": of.noise_variance,
            "least_devices": of.least_devices,
        }

    def encode(self) -> bytes:
        """The body of the HTTP request."""
        devices = [[one.device, one.nonce, one.seal] for one in self.members]
        return cbor2.dumps({**self._numbers(), "devices": devices})

    @classmethod
    def decode(cls, data: bytes) -> MaskRequest:
        """What ``encode`` gave, in whatever order of fields; ProtocolError for anything else."""
        found = _load_map(_KIND, data, MOST_REQUEST_BYTES)
        if found.keys() != {*_CHECKS, "devices"}:
            raise ProtocolError(_KIND, "", f"has other fields than {', '.join(_CHECKS)}, devices")
        # Checked before the parameters are made, which compare them as numbers.
        for name, field_check in _CHECKS.items():
            field_check(_KIND, name, found[name])
        devices = found.pop("devices")
        if not isinstance(devices, list):
            raise ProtocolError(_KIND, "devices", "an array is wanted")
        members = []
        for one in devices:
            if not isinstance(one, list) or len(one) != 3:
                raise ProtocolError(_KIND, "devices", "[device, nonce, seal] is wanted of each")
            members.append(MaskMember(*one))
        of_set = {name: found.pop(name) for name in _OF_SET}
        try:
            parameters = MaskParameters(**found)
        except MaskError as error:
            raise ProtocolError(_KIND, "", str(error)) from None
        return cls(**of_set, parameters=parameters, members=tuple(members))

    def digest(self) -> bytes:
        """32 bytes: which request it is. Two with one digest have one answer."""
        return hashlib.blake2b(self.encode(), digest_size=32).digest()

    def binding(self, fleet: str, device: str) -> Binding:
        """What the device's seal has to be bound to."""
        return Binding(
            *(fleet, device, self.campaign, self.round, self.plan, self.weights, self.values),
            self.parameters,
        )


def encode_masks(masks: Words, bits: int) -> bytes:
    """An answer: the sum of the streams, modulo 2^bits."""
    return cbor2.dumps({"masks": pack(masks, bits)})


def decode_masks(data: bytes, request: MaskRequest) -> Words:
    """The sum of streams [values] that answers ``request``; ProtocolError for anything else."""
    kind, each = "masks", request.parameters.bits // 8
    found = _load_map(kind, data, request.values * each + 64)
    if found.keys() != {"masks"}:
        raise ProtocolError(kind, "", "has other fields than masks")
    size = request.values * each
    check.bytes_of(size, size)(kind, "masks", found["masks"])
    return unpack(found["masks"], request.parameters.bits)


def encode_refusal(error: MaskRefusedError) -> bytes:
    """A refusal's body."""
    told = {"error": error.kind, "detail": error.detail, "devices": list(error.devices)}
    return cbor2.dumps(told)


def decode_refusal(data: bytes) -> MaskRefusedError:
    """The refusal in a body; ProtocolError for anything else."""
    kind = "refusal"
    found = _load_map(kind, data, MOST_REQUEST_BYTES)
    if found.keys() != {"error", "detail", "devices"} or found["error"] not in REFUSALS:
        raise ProtocolError(kind, "error", "isn't one of an unmasker's")
    check.text_of(0, MOST_REQUEST_BYTES)(kind, "detail", found["detail"])
    if not isinstance(found["devices"], list):
        raise ProtocolError(kind, "devices", "an array is wanted")
    for device in found["devices"]:
        check.name(kind, "devices", device)
    return MaskRefusedError(found["error"], found["detail"], found["devices"])


@dataclass(frozen=True)
class UnmaskerFacts:
    """What an unmasker says of itself."""

    key: bytes
    """Its public key."""
    fleet: str
    least_devices: int
    devices: int
    """That are enrolled and not revoked."""

    def encode(self) -> bytes:
        """The body of an answer."""
        return cbor2.dumps(
            {
                "key": self.key,
                "fleet": self.fleet,
                "least_devices": self.least_devices,
                "devices": self.devices,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> UnmaskerFacts:
        """What ``encode`` gave; ProtocolError for anything else."""
        kind, found = "unmasker", _load_map("unmasker", data, MOST_REQUEST_BYTES)
        checks: dict[str, check.FieldCheck] = {
            "key": check.digest,
            "fleet": check.name,
            "least_devices": check.uint16,
            "devices": check.uint32,
        }
        if found.keys() != checks.keys():
            raise ProtocolError(kind, "", f"has other fields than {', '.join(checks)}")
        for name, field_check in checks.items():
            field_check(kind, name, found[name])
        return cls(**found)


def _load_map(kind: str, data: bytes, most: int) -> dict[str, Any]:
    if len(data) > most:
        raise ProtocolError(kind, "", f"has {len(data)} bytes, at most {most} are taken")
    if not data or data[0] >> 5 != 5:  # major type 5: what isn't a map needs no parsing
        raise ProtocolError(kind, "", "a map is wanted")
    stream = BytesIO(data)
    try:
        found = cbor2.CBORDecoder(stream).decode()
        rest = len(data) - stream.tell()
    except Exception as error:  # cbor2 lets errors of tag handlers through, whatever they are
        raise ProtocolError(kind, "", f"is no CBOR: {error}") from None
    if rest:
        raise ProtocolError(kind, "", f"{rest} bytes are left over after the map")
    if not isinstance(found, dict) or not all(type(key) is str for key in found):
        raise ProtocolError(kind, "", "a map with texts as keys is wanted")
    return found
