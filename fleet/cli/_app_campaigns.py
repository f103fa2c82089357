"""Commands about campaigns, and about who may use a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fleet.cli._options import (
    Limit,
    Out,
    Site,
    Token,
    Url,
    Why,
    client_of,
)
from fleet.command_options import Json

campaign = typer.Typer(help="Campaigns.", no_args_is_help=True)
tokens = typer.Typer(help="Who may use a service.", no_args_is_help=True)
webhooks = typer.Typer(help="Where events of a service go.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Everything of this module."""
    for name, group in (("campaign", campaign), ("tokens", tokens), ("webhooks", webhooks)):
        app.add_typer(group, name=name)
    app.command()(audit)


# Campaigns

CampaignFile = Annotated[Path, typer.Argument(help="Campaign as YAML.")]
CampaignName = Annotated[str, typer.Argument(help="The campaign's id, its beginning, or its name.")]


@campaign.command("validate")
def campaign_validate(file: CampaignFile, json: Json = False) -> None:
    """Check a campaign's file, and show the rounds that it asks for."""
    from fleet.cli._campaign import validate

    validate(file, as_json=json)


@campaign.command("schema")
def campaign_schema() -> None:
    """Print the JSON Schema of a campaign's file."""
    from fleet.cli._campaign import print_schema

    print_schema()


@campaign.command("plan")
def campaign_plan(
    file: CampaignFile,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show what a campaign would do, and cost, as things stand."""
    from fleet.cli._campaign import plan

    plan(client_of(site, url, token), file, as_json=json)


@campaign.command("start")
def campaign_start(
    file: CampaignFile,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Start a campaign."""
    from fleet.cli._campaign import start

    raise typer.Exit(start(client_of(site, url, token, why), file, watched=watch, as_json=json))


@campaign.command("list")
def campaign_list(
    limit: Limit = 100,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """List campaigns, newest first."""
    from fleet.cli._campaign import show_list

    show_list(client_of(site, url, token), limit, as_json=json)


@campaign.command("show")
def campaign_show(
    name: CampaignName, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Show a campaign: stages, gates, rounds, failures."""
    from fleet.cli._campaign import show

    show(client_of(site, url, token), name, as_json=json)


@campaign.command("watch")
def campaign_watch(
    name: CampaignName, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Follow a campaign to its end; exit code 3 where that isn't a good one."""
    from fleet.cli._campaign import watch

    raise typer.Exit(watch(client_of(site, url, token), name, as_json=json))


def _action(name: str, action: str, what: str) -> None:
    def run(
        campaign: CampaignName,
        site: Site = None,
        url: Url = None,
        token: Token = None,
        why: Why = "",
        json: Json = False,
    ) -> None:
        from fleet.cli._campaign import act

        act(client_of(site, url, token, why), campaign, action, as_json=json)

    campaign.command(name, help=what)(run)


_action("pause", "pause", "Begin no further round until it is resumed.")
_action("resume", "resume", "Go on after a pause.")
_action("stop", "stop", "Cancel the running round and end the campaign.")
_action("approve", "approve", "Let it go on with what it waits for.")
_action("rollback", "roll-back", "Bring its devices back to the weights that they had before.")


@campaign.command("clone")
def campaign_clone(
    name: CampaignName,
    out: Out = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Write a campaign's file, to change it and start it again."""
    from fleet.cli._campaign import clone

    clone(client_of(site, url, token), name, out, as_json=json)


@campaign.command("export")
def campaign_export(
    name: CampaignName,
    out: Annotated[Path, typer.Option("--out", help="A .json or a .parquet file.")],
    site: Site = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Write all that devices reported in a campaign."""
    from fleet.cli._campaign import export

    export(client_of(site, url, token), name, out)


# Accounts


@tokens.command("issue")
def tokens_issue(
    who: Annotated[str, typer.Argument(help="Whom the audit log names.")],
    role: Annotated[Literal["viewer", "operator", "approver", "admin"], typer.Option()],
    days: Annotated[float, typer.Option(help="How long it is good.")] = 365,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Issue a token; it is told once."""
    from fleet.cli._accounts import issue_token

    issue_token(client_of(site, url, token, why), who, role, days, as_json=json)


@tokens.command("first")
def tokens_first(
    who: Annotated[str, typer.Argument(help="Whom the audit log names.")],
    config: Annotated[
        Path, typer.Option("--config", help="The service's TOML file, on its machine.")
    ] = Path("coordinator.toml"),
    json: Json = False,
) -> None:
    """Issue an administrator's token on the service's machine, where nobody has one yet."""
    from fleet.cli._accounts import first_token

    first_token(config, who, as_json=json)


@tokens.command("list")
def tokens_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List tokens, without their secrets."""
    from fleet.cli._accounts import show_tokens

    show_tokens(client_of(site, url, token), as_json=json)


@tokens.command("revoke")
def tokens_revoke(
    name: Annotated[str, typer.Argument(help="The token's id.")],
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Make a token no good."""
    from fleet.cli._accounts import revoke_token

    revoke_token(client_of(site, url, token, why), name, as_json=json)


def audit(
    object: Annotated[
        str, typer.Option(help="Of one thing only, such as device:NAME or campaign:ID.")
    ] = "",
    after: Annotated[int, typer.Option(min=0, help="Behind this entry's number.")] = 0,
    limit: Limit = 100,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show who did what, when and why."""
    from fleet.cli._accounts import show_audit

    show_audit(client_of(site, url, token), object, after, limit, as_json=json)


@webhooks.command("add")
def webhooks_add(
    address: Annotated[str, typer.Argument(help="http or https address.")],
    event: Annotated[list[str], typer.Option(help="gate, state, campaign-ended; repeat for more.")],
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Send events to an address, signed."""
    from fleet.cli._accounts import add_webhook

    add_webhook(client_of(site, url, token, why), address, event, as_json=json)


@webhooks.command("list")
def webhooks_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List webhooks."""
    from fleet.cli._accounts import show_webhooks

    show_webhooks(client_of(site, url, token), as_json=json)


@webhooks.command("remove")
def webhooks_remove(
    webhook: str,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Send nothing there any more."""
    from fleet.cli._accounts import remove_webhook

    remove_webhook(client_of(site, url, token, why), webhook, as_json=json)
