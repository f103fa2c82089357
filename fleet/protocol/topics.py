"""Topics of wire.md: built from names that are checked, and taken apart again."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.errors import ProtocolError
from fleet.protocol import fields
from fleet.protocol.chunks import group_of

PREFIX_DIGITS = 2 * fields.PREFIX_BYTES


def _names(**names: str) -> None:
    for role, name in names.items():
        fields.name("topic", role, name)


def announce(fleet: str, device: str) -> str:
    """Where a device says what it is."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/dev/{device}/announce"


def status(fleet: str, device: str) -> str:
    """Where a device says what it is doing."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/dev/{device}/status"


def task(fleet: str, device: str) -> str:
    """Where a device finds its task."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/to/{device}/task"


def receipt(fleet: str, device: str) -> str:
    """Where a device hears what became of its delta."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/to/{device}/receipt"


def to_device(fleet: str, device: str) -> str:
    """Filter for everything that is meant for one device."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/to/{device}/+"


def delta(fleet: str, gateway: str, device: str) -> str:
    """Where a device sends its delta: the response topic of its task."""
    _names(fleet=fleet, gateway=gateway, device=device)
    return f"fleet/{fleet}/gw/{gateway}/{device}/delta"


def blob(fleet: str, weights: bytes, chunk: int) -> str:
    """Where chunk number ``chunk`` of the weights with this SHA-256 lies."""
    fields.uint16("topic", "chunk", chunk)
    return f"{_blob(fleet, weights)}/{group_of(chunk)}/{chunk}"


def any_device(fleet: str, what: str) -> str:
    """Filter for ``what`` ("announce" or "status") of every device of a fleet."""
    _names(fleet=fleet, what=what)
    return f"fleet/{fleet}/dev/+/{what}"


def any_task(fleet: str) -> str:
    """Filter for the tasks of all devices."""
    _names(fleet=fleet)
    return f"fleet/{fleet}/to/+/task"


def any_delta(fleet: str, gateway: str) -> str:
    """Filter for the deltas that are meant for one gateway."""
    _names(fleet=fleet, gateway=gateway)
    return f"fleet/{fleet}/gw/{gateway}/+/delta"


def any_chunk(fleet: str, weights: bytes | None = None) -> str:
    """Filter for all chunks of the weights with this SHA-256, or of all weights."""
    if weights is None:
        _names(fleet=fleet)
        return f"fleet/{fleet}/blob/+/+/+"
    return f"{_blob(fleet, weights)}/+/+"


def any_first_chunk(fleet: str) -> str:
    """Filter for the first chunk of all weights: one message tells that weights are there."""
    _names(fleet=fleet)
    return f"fleet/{fleet}/blob/+/0/0"


def any_of_group(fleet: str, weights: bytes, group: int) -> str:
    """Filter for one group of chunks: what a device asks for at a time."""
    fields.uint16("topic", "group", group)
    return f"{_blob(fleet, weights)}/{group}/+"


def _blob(fleet: str, weights: bytes) -> str:
    _names(fleet=fleet)
    fields.digest("topic", "weights", weights)
    return f"fleet/{fleet}/blob/{weights[: fields.PREFIX_BYTES].hex()}"


@dataclass(frozen=True)
class Topic:
    """A topic taken apart. ``kind`` is announce, status, task, receipt, delta or blob.

    Names that a kind doesn't have are empty; ``chunk`` is -1 except for blobs.
    """

    kind: str
    fleet: str
    device: str = ""
    gateway: str = ""
    prefix: bytes = b""
    """First bytes of the SHA-256 of the weights."""
    chunk: int = -1


def parse(topic: str) -> Topic:
    """What a topic stands for; ProtocolError for one that wire.md doesn't have."""
    parts = topic.split("/")
    if len(parts) < 5 or parts[0] != "fleet":
        raise ProtocolError("topic", "", f"{topic!r} is none of wire.md")
    fleet = parts[1]
    _names(fleet=fleet)
    match parts[2:]:
        case ["dev", device, ("announce" | "status") as kind]:
            _names(device=device)
            return Topic(kind, fleet, device=device)
        case ["to", device, ("task" | "receipt") as kind]:
            _names(device=device)
            return Topic(kind, fleet, device=device)
        case ["gw", gateway, device, "delta"]:
            _names(gateway=gateway, device=device)
            return Topic("delta", fleet, device=device, gateway=gateway)
        case ["blob", prefix, group, chunk]:
            number = _number("chunk", chunk)
            if _number("group", group) != group_of(number):
                raise ProtocolError("topic", "group", f"{group} isn't the group of chunk {chunk}")
            return Topic("blob", fleet, prefix=_prefix(prefix), chunk=number)
    raise ProtocolError("topic", "", f"{topic!r} is none of wire.md")


def _prefix(digits: str) -> bytes:
    if len(digits) != PREFIX_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise ProtocolError(
            "topic", "prefix", f"{digits!r} is not {PREFIX_DIGITS} lower-case hex digits"
        )
    return bytes.fromhex(digits)


def _number(role: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 5):
        raise ProtocolError("topic", role, f"{digits!r} is no number")
    if str(int(digits)) != digits:
        raise ProtocolError("topic", role, f"{digits!r} has a zero in front")
    fields.uint16("topic", role, int(digits))
    return int(digits)
