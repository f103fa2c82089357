"""The range of each message field, said once: for messages, start requests and configurations.

Each is the same as its type in ``tinyfleet.cddl``. The hot path checks with these instead of
walking the CDDL; the tests prove that both accept the same messages. Models of pydantic take
``Annotated[int, EPOCHS.field()]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field

from fleet.errors import ProtocolError

PROTOCOL_VERSION = 3
DIGEST_BYTES = 32
CAMPAIGN_BYTES = 8
PREFIX_BYTES = 8
MAX_SIGNATURE_BYTES = 64
MAX_KEYRING_BYTES = 256

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,32}")

# The same for models of pydantic; identifiers are hex digits outside of the wire.
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
HexDigest = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * DIGEST_BYTES}}}$")]
HexCampaign = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * CAMPAIGN_BYTES}}}$")]

# Of what operators write, whose fields are explained by what stands below them.
FORM = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

# Takes message name, field name and value; raises ProtocolError.
FieldCheck: TypeAlias = Callable[[str, str, object], None]


@dataclass(frozen=True)
class Range:
    """Integers ``least`` … ``most`` that are multiples of ``multiple``; bool is no integer here."""

    least: int
    most: int
    multiple: int = 1

    def __call__(self, message: str, field: str, value: object) -> None:
        """Check a message's field: ProtocolError names what is wrong with ``value``."""
        if type(value) is int and self.least <= value <= self.most and not value % self.multiple:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise ProtocolError(message, field, f"an integer is wanted, not {kind_of(value)}")
        if not self.least <= value <= self.most:
            raise ProtocolError(message, field, f"{value} is outside {self.least} … {self.most}")
        if value % self.multiple:
            raise ProtocolError(message, field, f"{value} is no multiple of {self.multiple}")

    def field(self, least: int | None = None) -> Any:
        """The same for a model of pydantic; ``least`` where its user needs more than this."""
        at_least = self.least if least is None else max(least, self.least)
        return Field(ge=at_least, le=self.most, multiple_of=self.multiple)


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


uint8 = Range(0, 0xFF)
uint16 = Range(0, 0xFFFF)
uint32 = Range(0, 0xFFFFFFFF)

ROUND = uint32
LEASE = uint32
SEED = uint32
CHUNK_BYTES = Range(16, 512, multiple=4)  # of the weights: what the device's flash takes
UPLINK_CHUNK_BYTES = Range(64, 16384)
EPOCHS = uint8
LEARNING_RATE_Q20 = uint32
DEADLINE_SECONDS = Range(0, 7 * 24 * 3600)
CHECK_IN_SECONDS = Range(0, 7 * 24 * 3600)
MAX_SCORE_DROP_PERMILLE = Range(0, 1000)
BATTERY = uint8  # 0 … 100, 128 more while it charges; above: unknown
SAMPLES = uint16

LEARNING_RATE_ONE = 1 << 20  # of learning_rate_q20
MAX_DELAY_SECONDS = 7 * 24 * 3600  # of a task, from its round's start
MAX_LEARNING_RATE = LEARNING_RATE_Q20.most / LEARNING_RATE_ONE

digest = bytes_of(DIGEST_BYTES, DIGEST_BYTES)
campaign_id = bytes_of(CAMPAIGN_BYTES, CAMPAIGN_BYTES)
prefix = bytes_of(PREFIX_BYTES, PREFIX_BYTES)
signature = bytes_of(0, MAX_SIGNATURE_BYTES)
keyring = bytes_of(0, MAX_KEYRING_BYTES)
coded = bytes_of(0, UPLINK_CHUNK_BYTES.most)
version = constant(PROTOCOL_VERSION)
