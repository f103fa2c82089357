"""Errors of the API as pages tell them."""

from __future__ import annotations

from pydantic import ValidationError

from fleet.errors import (
    AccessError,
    ConflictError,
    FleetError,
    NotKnownError,
    ServiceError,
    UnknownTokenError,
)
from fleet.service.mistakes import told

REFUSALS = (FleetError, ValidationError)
"""What a form can be refused with, before it is sent or by the API; for `beside_form`."""

REMEDIES = {
    400: "Go back and look at what the address or the form says.",
    403: "Ask somebody who may do it, or log in with another token.",
    404: "Look whether it is still there, and whether its name is right.",
    405: "Go back and use the page's own buttons.",
    409: "Look at how things stand now, and decide again.",
    413: "Go back and send less at once.",
    422: "Go back and put it right.",
    429: "Wait a little; this token asks for much, perhaps elsewhere as well.",
    500: "Try again; if it comes again, it is worth a report.",
    503: "The service or its database is away for a moment.",
}


def status_of(error: FleetError) -> int:
    """The HTTP status of a page that tells it."""
    if isinstance(error, UnknownTokenError):
        return 401
    if isinstance(error, AccessError):
        return 403
    if isinstance(error, NotKnownError):
        return 404
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, ServiceError):
        return error.status or 503
    return 422


def comes_again(status: int) -> bool:
    """Whether the same may be taken another time."""
    return status in (429, 503)


def beside_form(error: FleetError | ValidationError) -> tuple[str, int]:
    """What is told beside the form that was refused, and the page's status.

    Raises the error again where it is about who asks: then there is the log-in page.
    """
    if isinstance(error, UnknownTokenError):
        raise error
    if isinstance(error, ValidationError):
        return told(error.errors()), 422
    status = status_of(error)
    remedy = f"\n{REMEDIES[status]}" if status == 403 or comes_again(status) else ""
    return f"{error}{remedy}", status
