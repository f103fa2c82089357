"""Options that many commands have, and the client that they make of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet.service.client import Client

Site = Annotated[
    Path | None,
    typer.Option("--site", help="Folder of a deployment on this machine (`tinyfleet init`)."),
]
Url = Annotated[str | None, typer.Option("--url", help="Address of a service.")]
Token = Annotated[
    str | None, typer.Option("--token", help="Whose token; better in the variable TINYFLEET_TOKEN.")
]
Why = Annotated[str, typer.Option("--why", help="Why; the audit log keeps it.")]
Folder = Annotated[Path, typer.Argument(help="Folder of the deployment.")]
Config = Annotated[Path, typer.Option("--config", help="TOML file.")]
Filter = Annotated[
    str, typer.Option("--filter", help="Which devices, in CEL: docs/howto/filter-devices.md.")
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")]
Out = Annotated[Path | None, typer.Option("--out", help="File that it is written to.")]


def client_of(site: Path | None, url: str | None, token: str | None, why: str = "") -> Client:
    """The service that the options name."""
    from fleet.cli._service import connect

    return connect(site, url, token, why)
