"""Commands about privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.cli._options import Limit, Site, Token, Url, client_of
from fleet.command_options import Json

privacy = typer.Typer(help="What campaigns may tell of any one device.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Everything of this module."""
    app.add_typer(privacy, name="privacy")


@privacy.command("show")
def privacy_show(
    device: Annotated[str, typer.Argument(help="One device; all where left out.")] = "",
    campaign: Annotated[
        str, typer.Option(help="Of a campaign's devices only: its id or its name.")
    ] = "",
    after: Annotated[str, typer.Option(help="Devices behind this name.")] = "",
    limit: Limit = 100,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show what campaigns have spent of devices' privacy, and what is left of their budgets."""
    from fleet.cli._privacy import show

    show(client_of(site, url, token), device, campaign, after, limit, as_json=json)


@privacy.command("plan")
def privacy_plan(
    file: Annotated[Path, typer.Argument(help="Campaign as YAML.")],
    virtual: Annotated[
        Path | None,
        typer.Option(
            "--virtual",
            help="An experiment's file: run it with the campaign's noise and without, and show "
            "what accuracy that takes.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the experiment's results.")] = Path(
        "out/privacy"
    ),
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show what a campaign would cost of its devices' privacy, to whom, before it is started."""
    from fleet.cli._privacy import plan

    # Without a service, the experiment tells what it can.
    client = None if virtual and not (site or url) else client_of(site, url, token)
    plan(client, file, virtual, out, as_json=json)
