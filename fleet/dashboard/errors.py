"""Errors of the API as pages tell them."""

from __future__ import annotations

from fleet.errors import (
    AccessError,
    ConflictError,
    FleetError,
    NotKnownError,
    ServiceError,
    UnknownTokenError,
)

REMEDIES = {
    400: "Go back and look at what the address or the form says.",
    403: "Ask somebody who may do it, or log in with another token.",
    404: "Look whether it is still there, and whether its name is right.",
    405: "Go back and use the page's own buttons.",
    409: "Look at how things stand now, and decide again.",
    422: "Go back and put it right.",
    429: "Wait a little; this token asks for much, perhaps elsewhere as well.",
    500: "Try again; if it comes again, it is worth a report.",
    503: "Its database or the service is away for a moment. This page tries again by itself.",
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


def told(error: FleetError) -> str:
    """In the API's own words."""
    return str(error)
