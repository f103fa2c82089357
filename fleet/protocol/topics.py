"""Topics of wire.md: built from names that are checked, and taken apart again."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.errors import ProtocolError
from fleet.protocol import fields


def _names(**names: str) -> None:
    for role, name in names.items():
        fields.name("topic", role, name)


def announce(fleet: str, device: str) -> str:
    """Where a device says what it is."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/dev/{device}/announce"


def task(fleet: str, device: str) -> str:
    """Where a device finds its task."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/dev/{device}/task"


def status(fleet: str, device: str) -> str:
    """Where a device says what it is doing."""
    _names(fleet=fleet, device=device)
    return f"fleet/{fleet}/dev/{device}/status"


def delta(fleet: str, gateway: str, device: str) -> str:
    """Where a device sends its delta: the response topic of its task."""
    _names(fleet=fleet, gateway=gateway, device=device)
    return f"fleet/{fleet}/gw/{gateway}/{device}/delta"


def blob(fleet: str, sha256: str, chunk: int) -> str:
    """Where chunk number ``chunk`` of a weights blob lies; ``sha256`` in hex."""
    _names(fleet=fleet)
    _digest(sha256)
    if chunk < 0:
        raise ProtocolError("topic", "chunk", f"{chunk} is negative")
    return f"fleet/{fleet}/blob/{sha256}/{chunk}"


def any_device(fleet: str, what: str) -> str:
    """Filter for ``what`` ("announce", "task" or "status") of every device of a fleet."""
    _names(fleet=fleet, what=what)
    return f"fleet/{fleet}/dev/+/{what}"


def any_delta(fleet: str, gateway: str) -> str:
    """Filter for the deltas that are meant for one gateway."""
    _names(fleet=fleet, gateway=gateway)
    return f"fleet/{fleet}/gw/{gateway}/+/delta"


def any_chunk(fleet: str, sha256: str) -> str:
    """Filter for all chunks of a weights blob; ``sha256`` in hex."""
    _names(fleet=fleet)
    _digest(sha256)
    return f"fleet/{fleet}/blob/{sha256}/+"


def _digest(sha256: str) -> None:
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ProtocolError("topic", "sha256", f"{sha256!r} is not 64 lower-case hex digits")


@dataclass(frozen=True)
class Topic:
    """A topic taken apart. ``kind`` is announce, task, status, delta or blob.

    Names that a kind doesn't have are empty; ``chunk`` is -1 except for blobs.
    """

    kind: str
    fleet: str
    device: str = ""
    gateway: str = ""
    sha256: str = ""
    chunk: int = -1


def parse(topic: str) -> Topic:
    """What a topic stands for; ProtocolError for one that wire.md doesn't have."""
    parts = topic.split("/")
    if len(parts) < 5 or parts[0] != "fleet":
        raise ProtocolError("topic", "", f"{topic!r} is none of wire.md")
    fleet = parts[1]
    _names(fleet=fleet)
    match parts[2:]:
        case ["dev", device, ("announce" | "task" | "status") as kind]:
            _names(device=device)
            return Topic(kind, fleet, device=device)
        case ["gw", gateway, device, "delta"]:
            _names(gateway=gateway, device=device)
            return Topic("delta", fleet, device=device, gateway=gateway)
        case ["blob", sha256, chunk]:
            _digest(sha256)
            if not (chunk.isascii() and chunk.isdecimal() and str(int(chunk)) == chunk):
                raise ProtocolError("topic", "chunk", f"{chunk!r} is no chunk number")
            return Topic("blob", fleet, sha256=sha256, chunk=int(chunk))
    raise ProtocolError("topic", "", f"{topic!r} is none of wire.md")
