"""Validation against the CDDL file itself, through zcbor.

Slower than the checks of :mod:`fleet.protocol.messages` (about a millisecond a message), and
the authority: the device's codec is generated from the same file by the same tool.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache
from importlib.resources import files
from typing import Any

import zcbor

from fleet.errors import ProtocolError


def schema_text() -> str:
    """The text of ``tinyfleet.cddl``."""
    return files("fleet.protocol").joinpath("tinyfleet.cddl").read_text(encoding="utf-8")


@cache
def _types() -> dict[str, Any]:
    types: dict[str, Any] = zcbor.DataTranslator.from_cddl(schema_text(), default_max_qty=1)[0]
    return types


def validate(kind: str, data: bytes) -> dict[str, Any]:
    """The fields of a message by their CDDL names (with ``_``), checked against the CDDL.

    Raises ProtocolError for what the CDDL doesn't allow. The CDDL doesn't forbid other forms
    of the same value (a number in more bytes than it needs) nor bytes after the message;
    ``Message.decode`` does.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # zcbor prints what it tried
            decoded = _types()[kind].decode_str(data)
    except Exception as error:  # CddlValidationError, and whatever cbor2 raises on hostile bytes
        raise ProtocolError(kind, "", f"doesn't fit tinyfleet.cddl: {error}") from None
    fields: dict[str, Any] = decoded._asdict()
    for name, value in fields.items():
        # zcbor 0.9.1 takes a negative number for a CDDL "uint" in Python (its C doesn't).
        if isinstance(value, int) and value < 0:
            raise ProtocolError(kind, name, f"doesn't fit tinyfleet.cddl: {value} is negative")
    return fields
