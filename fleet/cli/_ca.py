"""What `tinyfleet ca` shows of a certificate authority."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fleet.cli._output import console, print_json, table
from fleet.security import Authority, Certificate


def init(folder: Path, fleet: str, *, as_json: bool) -> None:
    """Make an authority."""
    authority = Authority.create(folder, fleet)
    if as_json:
        print_json(
            {"certificate": str(authority.certificate), "expires": authority.expires.isoformat()}
        )
        return
    console().print(
        f"{authority.certificate} is good until {authority.expires:%Y-%m-%d}; give it to all. "
        f"Nobody else may read {folder / 'ca.key'}.",
        soft_wrap=True,
    )


def issue(folder: Path, name: str, hosts: Sequence[str], *, as_json: bool) -> None:
    """Issue a certificate."""
    show([Authority(folder).issue(name, hosts)], as_json=as_json)


def list_issued(folder: Path, *, as_json: bool) -> None:
    """All that was issued."""
    show(Authority(folder).issued(), as_json=as_json)


def show(certificates: Sequence[Certificate], *, as_json: bool) -> None:
    """Certificates as a table, or as JSON."""
    if as_json:
        print_json({"certificates": [_facts(one) for one in certificates]})
        return
    rows = [
        [one.name, f"{one.expires:%Y-%m-%d}", str(one.certificate), one.fingerprint[:16]]
        for one in certificates
    ]
    titles = ["name", "good until", "certificate", "SHA-256 begins with"]
    console().print(table("Certificates", titles, rows))


def _facts(one: Certificate) -> dict[str, Any]:
    paths = {"certificate": str(one.certificate), "key": str(one.key)}
    return {**asdict(one), **paths, "expires": one.expires.isoformat()}
