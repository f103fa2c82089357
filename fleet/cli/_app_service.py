"""Commands that run a service, and those that talk to one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from fleet.service.client import Client

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON, for programs.")]
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

devices = typer.Typer(help="Devices of a service.", no_args_is_help=True)
gateways = typer.Typer(help="Gateways of a service.", no_args_is_help=True)
gateway = typer.Typer(help="A site's gateway.", no_args_is_help=True)
models = typer.Typer(help="Models and their versions.", no_args_is_help=True)
campaign = typer.Typer(help="Campaigns.", no_args_is_help=True)
tokens = typer.Typer(help="Who may use a service.", no_args_is_help=True)
webhooks = typer.Typer(help="Where events of a service go.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Everything of this module."""
    for name, group in (
        ("devices", devices),
        ("gateways", gateways),
        ("gateway", gateway),
        ("models", models),
        ("campaign", campaign),
        ("tokens", tokens),
        ("webhooks", webhooks),
    ):
        app.add_typer(group, name=name)
    app.command()(init)
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(serve)
    app.command()(audit)
    app.command()(simulate)


def _client(site: Path | None, url: str | None, token: str | None, why: str = "") -> Client:
    from fleet.cli._service import connect

    return connect(site, url, token, why)


# What runs where


def init(
    folder: Folder,
    fleet: Annotated[str, typer.Option(help="Name of the fleet, as in topics.")] = "fleet",
    sites: Annotated[
        str, typer.Option(help="Names of the sites, with commas; each gets a broker.")
    ] = "home",
    gateways_per_site: Annotated[
        int, typer.Option(min=1, max=20, help="They share the site's devices.")
    ] = 2,
    json: Json = False,
) -> None:
    """Make a deployment of one machine: authority, brokers, gateways, service, token."""
    from fleet.cli._deployment import init as run

    run(folder, fleet, sites.split(","), gateways_per_site, as_json=json)


def up(folder: Folder, json: Json = False) -> None:
    """Start what doesn't run of a deployment; returns when it is ready."""
    from fleet.cli._deployment import up as run

    run(folder, as_json=json)


def down(folder: Folder, json: Json = False) -> None:
    """Stop a deployment."""
    from fleet.cli._deployment import down as run

    run(folder, as_json=json)


def status(folder: Folder, json: Json = False) -> None:
    """Show which parts of a deployment run; exit code 1 where one doesn't."""
    from fleet.cli._deployment import status as run

    if not run(folder, as_json=json):
        raise typer.Exit(1)


def serve(config: Config) -> None:
    """Run a coordinator's service: API, campaigns, SuperLink."""
    from fleet.cli._deployment import serve as run

    run(config)


@gateway.command("run")
def gateway_run(config: Config) -> None:
    """Run a site's gateway, with its SuperNode."""
    from fleet.cli._deployment import run_gateway

    run_gateway(config)


def simulate(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles, one per board.")],
    site: Annotated[Path, typer.Option("--site", help="Folder of a deployment that runs.")],
    devices: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 8,
    machine: Annotated[
        Literal["unicorn", "host"],
        typer.Option(help="Emulated boards, or the firmware's C as a library: many more."),
    ] = "unicorn",
    prefix: Annotated[str, typer.Option(help="What their names begin with.")] = "sim-",
    data: Annotated[
        Path | None,
        typer.Option(help="NPZ with x, y and maybe device. Default: digits, dealt to them."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of who has which samples.")] = 1,
    shuffle_training_labels: Annotated[
        str, typer.Option(help="Filter: these learn nonsense, and score right.")
    ] = "",
    shuffle_held_out_labels: Annotated[
        str, typer.Option(help="Filter: these learn right, and score nonsense.")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option(help="Until they go away. Default: until Ctrl-C.")
    ] = None,
) -> None:
    """Attach virtual devices to a deployment that runs, without hardware."""
    from fleet.cli._service import connect
    from fleet.cli._simulate import simulate as run

    run(
        site,
        connect(site, None, None, "simulate"),
        bundles,
        count=devices,
        prefix=prefix,
        machine=machine,
        data=data,
        seed=seed,
        shuffle_training_labels=shuffle_training_labels,
        shuffle_held_out_labels=shuffle_held_out_labels,
        seconds=seconds,
    )


# Devices and gateways


@devices.command("add")
def devices_add(
    names: Annotated[list[str], typer.Argument(help="Names of the devices.")],
    at: Annotated[str, typer.Option("--at", help="The site where they are.")],
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    out: Out = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Register devices; their passwords are told once."""
    from fleet.cli._devices import add

    add(_client(site, url, token, why), names, at, label or [], out, as_json=json)


@devices.command("import")
def devices_import(
    file: Annotated[Path, typer.Argument(help="CSV: device,site and a column for each label.")],
    out: Out = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Register the devices of a CSV file."""
    from fleet.cli._devices import import_csv

    import_csv(_client(site, url, token, why), file, out, as_json=json)


@devices.command("list")
def devices_list(
    filter: Filter = "",
    limit: Limit = 100,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """List the devices that match a filter."""
    from fleet.cli._devices import show_list

    show_list(_client(site, url, token), filter, limit, as_json=json)


@devices.command("preview")
def devices_preview(
    filter: Annotated[str, typer.Argument(help="Filter in CEL.")],
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show how many devices a filter means, and why not the others."""
    from fleet.cli._devices import preview

    preview(_client(site, url, token), filter, as_json=json)


@devices.command("show")
def devices_show(
    name: str, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Show a device and what it has reported."""
    from fleet.cli._devices import show

    show(_client(site, url, token), name, as_json=json)


@devices.command("label")
def devices_label(
    name: str,
    labels: Annotated[list[str], typer.Argument(help="NAME=VALUE, or NAME= to take it away.")],
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Set and take away labels; nothing begins by that alone."""
    from fleet.cli._devices import label

    label(_client(site, url, token, why), name, labels, as_json=json)


@devices.command("retire")
def devices_retire(
    name: str,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Take a device out of everything; its broker lets it in no more."""
    from fleet.cli._devices import retire

    retire(_client(site, url, token, why), name, as_json=json)


@devices.command("rotate")
def devices_rotate(
    name: str,
    out: Out = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Give a device a new password."""
    from fleet.cli._devices import rotate

    rotate(_client(site, url, token, why), name, out, as_json=json)


@devices.command("erase")
def devices_erase(
    name: str,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Forget a retired device and all that it reported."""
    from fleet.cli._devices import erase

    erase(_client(site, url, token, why), name, as_json=json)


@devices.command("image")
def devices_image(
    name: str,
    bundle: Annotated[Path, typer.Option("--bundle", help="Folder of the device's bundle.")],
    out: Annotated[Path, typer.Option("--out", help="A .bin or a .hex file.")],
    passwords: Annotated[
        Path | None,
        typer.Option(help="What `devices add --out` wrote. Default: the device gets a new one."),
    ] = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Write a device's identity, to be flashed beside the firmware."""
    from fleet.cli._simulate import image

    image(_client(site, url, token, why), name, bundle, passwords, out, as_json=json)


@gateways.command("list")
def gateways_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List gateways and when they were heard of."""
    from fleet.cli._devices import show_gateways

    show_gateways(_client(site, url, token), as_json=json)


# Models

VersionName = Annotated[str, typer.Argument(help="MODEL:NUMBER.")]
BundleOption = Annotated[Path, typer.Option("--bundle", help="Folder of a bundle of the model.")]


@models.command("import")
def models_import(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles, one per board.")],
    model: Annotated[
        str | None, typer.Option(help="Name of the model. Default: the bundle's.")
    ] = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Bring bundles into a service, with their weights as the first version."""
    from fleet.cli._models import import_bundles

    import_bundles(_client(site, url, token, why), bundles, model, as_json=json)


@models.command("import-onnx")
def models_import_onnx(
    model: Annotated[str, typer.Argument(help="The model that it is a version of.")],
    file: Annotated[Path, typer.Argument(help="ONNX of the same graph, trained elsewhere.")],
    bundle: BundleOption,
    parent: Annotated[
        int | None, typer.Option(help="Number of the version that it was made from.")
    ] = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Bring in what was trained elsewhere, as a candidate version."""
    from fleet.cli._models import import_onnx

    import_onnx(_client(site, url, token, why), model, file, bundle, parent, as_json=json)


@models.command("list")
def models_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List models."""
    from fleet.cli._models import show_list

    show_list(_client(site, url, token), as_json=json)


@models.command("show")
def models_show(
    model: str, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Show a model's versions."""
    from fleet.cli._models import show

    show(_client(site, url, token), model, as_json=json)


@models.command("export")
def models_export(
    version: VersionName,
    onnx: Annotated[Path, typer.Option("--onnx", help="File that is written.")],
    bundle: BundleOption,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Write a version as ONNX, which gives the same integers as devices do."""
    from fleet.cli._models import export

    export(_client(site, url, token), version, bundle, onnx, as_json=json)


@models.command("compare")
def models_compare(
    first: VersionName,
    second: VersionName,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Compare two versions, also by what the same devices scored with them."""
    from fleet.cli._models import compare

    compare(_client(site, url, token), first, second, as_json=json)


@models.command("release")
def models_release(
    version: VersionName,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Release a version: campaigns begin with it, and may bring it to devices."""
    from fleet.cli._models import release

    release(_client(site, url, token, why), version, as_json=json)


@models.command("rollback")
def models_rollback(
    model: str,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Withdraw a model's newest released version."""
    from fleet.cli._models import rollback

    rollback(_client(site, url, token, why), model, as_json=json)


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

    plan(_client(site, url, token), file, as_json=json)


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

    raise typer.Exit(start(_client(site, url, token, why), file, watched=watch, as_json=json))


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

    show_list(_client(site, url, token), limit, as_json=json)


@campaign.command("show")
def campaign_show(
    name: CampaignName, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Show a campaign: stages, gates, rounds, failures."""
    from fleet.cli._campaign import show

    show(_client(site, url, token), name, as_json=json)


@campaign.command("watch")
def campaign_watch(
    name: CampaignName, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Follow a campaign to its end; exit code 3 where that isn't a good one."""
    from fleet.cli._campaign import watch

    raise typer.Exit(watch(_client(site, url, token), name, as_json=json))


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

        act(_client(site, url, token, why), campaign, action, as_json=json)

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

    clone(_client(site, url, token), name, out, as_json=json)


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

    export(_client(site, url, token), name, out)


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

    issue_token(_client(site, url, token, why), who, role, days, as_json=json)


@tokens.command("list")
def tokens_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List tokens, without their secrets."""
    from fleet.cli._accounts import show_tokens

    show_tokens(_client(site, url, token), as_json=json)


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

    revoke_token(_client(site, url, token, why), name, as_json=json)


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

    show_audit(_client(site, url, token), object, after, limit, as_json=json)


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

    add_webhook(_client(site, url, token, why), address, event, as_json=json)


@webhooks.command("list")
def webhooks_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List webhooks."""
    from fleet.cli._accounts import show_webhooks

    show_webhooks(_client(site, url, token), as_json=json)


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

    remove_webhook(_client(site, url, token, why), webhook, as_json=json)
