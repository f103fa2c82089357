"""Who looks at the dashboard: a token of the API in a cookie; what may come from elsewhere."""

from __future__ import annotations

import base64
import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

ROOT = "/ui"
_TOKEN = "tinyfleet_token"
_NOTICE = "tinyfleet_notice"
_THEME = "tinyfleet_theme"
THEMES = ("system", "light", "dark")
_NOTICE_SECONDS = 30
_LONGEST_NOTICE = 500


def url(path: str, /, **query: object) -> str:
    """The address of a page of ours; what is empty or None isn't part of it."""
    wanted = [
        f"{name}={quote(str(value), safe='')}"
        for name, value in query.items()
        if value not in (None, "")
    ]
    return ROOT + quote(path, safe="/:") + ("?" + "&".join(wanted) if wanted else "")


def split(address: str) -> SplitResult:
    """The parts of an address that somebody has sent; all empty where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def local(address: str) -> str:
    """An address to go on to, where it is a page of ours; else the first page."""
    parts = split(address)
    is_ours = not (parts.scheme or parts.netloc) and re.fullmatch(r"/ui/[!-\[\]-~]*", address)
    # Browsers take dots away before they go there, however they are written.
    is_plain = not any(one in (".", "..") for one in unquote(parts.path).split("/"))
    return address if is_ours and is_plain else f"{ROOT}/"


def token_of(request: Request) -> str:
    """The token that a request carries; empty where it has none."""
    return request.cookies.get(_TOKEN, "")


def is_secure(request: Request) -> bool:
    """Whether the browser came over TLS, be it to a proxy before us."""
    told = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip()
    return request.url.scheme == "https" or told == "https"


def log_in(request: Request, response: Response, token: str) -> None:
    """Let the browser keep a token until it is closed."""
    response.set_cookie(
        _TOKEN,
        token,
        path=ROOT,
        secure=is_secure(request),
        httponly=True,
        samesite="strict",
    )


def log_out(response: Response) -> None:
    """Let the browser forget its token."""
    response.delete_cookie(_TOKEN, path=ROOT, httponly=True, samesite="strict")


def notify(request: Request, response: Response, text: str) -> None:
    """Tell something on the next page, once."""
    response.set_cookie(
        _NOTICE,
        base64.urlsafe_b64encode(text[:_LONGEST_NOTICE].encode()).decode(),
        path=ROOT,
        max_age=_NOTICE_SECONDS,
        secure=is_secure(request),
        httponly=True,
        samesite="strict",
    )


def take_notice(request: Request) -> str:
    """What the last page wanted to be told."""
    try:
        return base64.urlsafe_b64decode(request.cookies.get(_NOTICE, "").encode()).decode()
    except ValueError:
        return ""


def forget_notice(response: Response) -> None:
    """It was told."""
    response.delete_cookie(_NOTICE, path=ROOT, httponly=True, samesite="strict")


def theme_of(request: Request) -> str:
    """One of `THEMES`."""
    told = request.cookies.get(_THEME, "")
    return told if told in THEMES else THEMES[0]


def keep_theme(request: Request, response: Response, theme: str) -> None:
    """Remember a theme for a year. The script sets it too."""
    response.set_cookie(
        _THEME,
        theme if theme in THEMES else THEMES[0],
        path=ROOT,
        max_age=365 * 86_400,
        secure=is_secure(request),
        samesite="strict",
    )


def is_from_us(request: Request) -> bool:
    """Whether a form was sent from a page of ours.

    Browsers say where a form comes from: in Sec-Fetch-Site, where they trust the way to us; else in
    Origin. One that says neither is none.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    host = split(request.headers.get("Origin", "")).netloc
    # A form elsewhere can't set headers; a proxy may have changed Host.
    return bool(host) and host in (
        request.headers.get("Host"),
        request.headers.get("X-Forwarded-Host"),
    )


def is_link_from_elsewhere(request: Request) -> bool:
    """Whether somebody has followed a link of another site: browsers send no strict cookie then."""
    return request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method == "GET"
