"""What commands that talk to a service have in common."""

from __future__ import annotations

import os
from pathlib import Path

from fleet.cli._errors import CommandError
from fleet.service.client import Client


def connect(site: Path | None, url: str | None, token: str | None, why: str = "") -> Client:
    """A client by `--site`, or by `--url` and `--token`, or by the environment."""
    if site is None and url is None and "TINYFLEET_SITE" in os.environ:
        site = Path(os.environ["TINYFLEET_SITE"])
    authority = os.environ.get("TINYFLEET_CA")
    if site is not None:
        from fleet.service.deployment import Deployment, authority_of, token_of

        if url is None and authority is None:
            authority = str(authority_of(site))
        url = url or Deployment.read(site).url
        token = token or os.environ.get("TINYFLEET_TOKEN") or token_of(site)
    url = url or os.environ.get("TINYFLEET_URL")
    token = token or os.environ.get("TINYFLEET_TOKEN")
    if not url:
        raise CommandError(
            "which service? Give --site DIR, or --url with --token, or set TINYFLEET_SITE, or "
            "TINYFLEET_URL and TINYFLEET_TOKEN"
        )
    if not token:
        raise CommandError("--token is missing; it may stand in the variable TINYFLEET_TOKEN")
    return Client(url, token, ca_file=authority, why=why)


def ago(seconds: float | None) -> str:
    """How long ago something was, for people."""
    if seconds is None:
        return "never"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
