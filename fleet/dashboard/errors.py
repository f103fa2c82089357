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


def first_mistake(error: ValidationError) -> str:
    """What is wrong with a form, before it is sent."""
    one = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in one["loc"])
    return f"{where}: {one['msg'].removeprefix('Value error, ')}"


def told(error: FleetError) -> str:
    """In the API's own words."""
    return str(error)
