"""Checks of single message fields, each the same as its type in ``tinyfleet.cddl``.

The hot path checks with these instead of walking the CDDL; the tests prove that both
accept the same messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from fleet.errors import ProtocolError

PROTOCOL_VERSION = 1
DIGEST_BYTES = 32
CAMPAIGN_BYTES = 8
PREFIX_BYTES = 8
CHUNK_BYTES = 512

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,32}")

# Takes message name, field name and value; raises ProtocolError.
FieldCheck: TypeAlias = Callable[[str, str, object], None]


def unsigned(limit: int) -> FieldCheck:
    """An integer 0 … ``limit``; bool is not an integer here."""

    def check(message: str, field: str, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ProtocolError(message, field, f"an integer is wanted, not {kind_of(value)}")
        if not 0 <= value <= limit:
            raise ProtocolError(message, field, f"{value} is outside 0 … {limit}")

    return check


def constant(wanted: int) -> FieldCheck:
    """Exactly this integer."""

    def check(message: str, field: str, value: object) -> None:
        if type(value) is not int or value != wanted:
            raise ProtocolError(message, field, f"must be {wanted}, not {value!r}")

    return check


def bytes_of(least: int, most: int) -> FieldCheck:
    """A byte string of ``least`` … ``most`` bytes."""

    def check(message: str, field: str, value: object) -> None:
        if type(value) is not bytes:
            raise ProtocolError(message, field, f"bytes are wanted, not {kind_of(value)}")
        if not least <= len(value) <= most:
            wanted = f"{least}" if least == most else f"{least} … {most}"
            raise ProtocolError(message, field, f"has {len(value)} bytes, {wanted} are allowed")

    return check


def text_of(least: int, most: int) -> FieldCheck:
    """A text whose UTF-8 form has ``least`` … ``most`` bytes (which is how CDDL counts)."""

    def check(message: str, field: str, value: object) -> None:
        if type(value) is not str:
            raise ProtocolError(message, field, f"a text is wanted, not {kind_of(value)}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise ProtocolError(message, field, "is not Unicode text") from None
        if not least <= size <= most:
            raise ProtocolError(message, field, f"has {size} bytes, {least} … {most} are allowed")

    return check


def name(message: str, field: str, value: object) -> None:
    """A name as it may stand in a topic: letters, digits, ``_`` and ``-``, 1 … 32 of them."""
    if type(value) is not str:
        raise ProtocolError(message, field, f"a text is wanted, not {kind_of(value)}")
    if NAME_PATTERN.fullmatch(value) is None:
        raise ProtocolError(
            message, field, f"{value!r} is no name: 1 to 32 letters, digits, '_' or '-'"
        )


def kind_of(value: Any) -> str:
    """What a decoded CBOR value is, in words."""
    return {
        bool: "true or false",
        int: "an integer",
        float: "a float",
        str: "a text",
        bytes: "bytes",
        list: "an array",
        dict: "a map",
        type(None): "null",
    }.get(type(value), type(value).__name__)


uint8 = unsigned(0xFF)
uint16 = unsigned(0xFFFF)
uint32 = unsigned(0xFFFFFFFF)
percent = unsigned(100)
digest = bytes_of(DIGEST_BYTES, DIGEST_BYTES)
campaign_id = bytes_of(CAMPAIGN_BYTES, CAMPAIGN_BYTES)
prefix = bytes_of(PREFIX_BYTES, PREFIX_BYTES)
version = constant(PROTOCOL_VERSION)
