"""Commands that run a service, and those about its devices and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.cli._errors import CommandError
from fleet.cli._options import (
    Config,
    Filter,
    Folder,
    Limit,
    Out,
    Site,
    Token,
    Url,
    Why,
    client_of,
)
from fleet.command_options import Json

devices = typer.Typer(help="Devices of a service.", no_args_is_help=True)
gateways = typer.Typer(help="Gateways of a service.", no_args_is_help=True)
gateway = typer.Typer(help="A site's gateway.", no_args_is_help=True)
models = typer.Typer(help="Models and their versions.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Everything of this module."""
    for name, group in (
        ("devices", devices),
        ("gateways", gateways),
        ("gateway", gateway),
        ("models", models),
    ):
        app.add_typer(group, name=name)
    for command in (init, up, down, status, serve, health, backup, restore, simulate):
        app.command()(command)


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
    containers: Annotated[
        bool,
        typer.Option(
            "--containers", help="For deploy/compose.yaml: one site with two gateways, PostgreSQL."
        ),
    ] = False,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="With --containers, a name or address under which others reach this machine; may "
            "be repeated."
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="With keys that sign tasks, and an unmasker for masks."),
    ] = False,
    json: Json = False,
) -> None:
    """Make a deployment of one machine: authority, brokers, gateways, service, token."""
    from fleet.cli import _deployment as deployment

    if containers:
        deployment.init_containers(
            folder,
            fleet,
            sites.split(","),
            gateways_per_site,
            host or [],
            is_private=private,
            as_json=json,
        )
    elif host:
        raise CommandError(
            "--host goes with --containers: without them all is reached on this machine only"
        )
    else:
        deployment.init(
            folder,
            fleet,
            sites.split(","),
            gateways_per_site,
            is_private=private,
            as_json=json,
        )


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


def serve(config: Config = Path("coordinator.toml")) -> None:
    """Run a coordinator's service: API, campaigns, SuperLink."""
    from fleet.cli._deployment import serve as run

    run(config)


def health(
    config: Annotated[Path, typer.Argument(help="TOML file of a service or a gateway.")],
) -> None:
    """Ask the service, gateway or unmasker here whether it works; exit code 1 if not."""
    from fleet.service.health import problems

    found = problems(config)
    for problem in found:
        print(problem)
    if found:
        raise typer.Exit(1)


Deployment = Annotated[
    Path | None, typer.Option("--site", help="Folder of a deployment that `tinyfleet init` made.")
]
Service = Annotated[
    Path | None, typer.Option("--config", help="TOML file of a service, without a deployment.")
]


def backup(
    out: Annotated[Path, typer.Argument(help="File that is written; - is standard output.")],
    site: Deployment = None,
    config: Service = None,
    json: Json = False,
) -> None:
    """Back up a service's store and what it is configured with, also while it runs."""
    from fleet.cli._backup import back_up as run

    run(out, config, site, as_json=json)


def restore(
    archive: Annotated[Path, typer.Argument(help="What was backed up; - is standard input.")],
    site: Deployment = None,
    config: Service = None,
    json: Json = False,
) -> None:
    """Restore a backup where there is nothing yet."""
    from fleet.cli._backup import restore as run

    run(archive, config, site, as_json=json)


@gateway.command("run")
def gateway_run(config: Config = Path("gateway.toml")) -> None:
    """Run a site's gateway, with its SuperNode."""
    from fleet.cli._deployment import run_gateway

    run_gateway(config)


def simulate(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles, one per board.")],
    site: Annotated[Path, typer.Option("--site", help="Folder of a deployment that runs.")],
    devices: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 8,
    machine: Annotated[
        str, typer.Option(help="How they are run: a name of `tinyfleet machines`; most with host.")
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

    add(client_of(site, url, token, why), names, at, label or [], out, as_json=json)


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

    import_csv(client_of(site, url, token, why), file, out, as_json=json)


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

    show_list(client_of(site, url, token), filter, limit, as_json=json)


@devices.command("export")
def devices_export(
    filter: Filter = "",
    out: Out = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Write all devices that match, a JSON object a line."""
    from fleet.cli._devices import export

    export(client_of(site, url, token), filter, out)


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

    preview(client_of(site, url, token), filter, as_json=json)


@devices.command("show")
def devices_show(
    name: str, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Show a device and what it has reported."""
    from fleet.cli._devices import show

    show(client_of(site, url, token), name, as_json=json)


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

    label(client_of(site, url, token, why), name, labels, as_json=json)


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

    retire(client_of(site, url, token, why), name, as_json=json)


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

    rotate(client_of(site, url, token, why), name, out, as_json=json)


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

    erase(client_of(site, url, token, why), name, as_json=json)


@devices.command("image")
def devices_image(
    name: str,
    bundle: Annotated[Path, typer.Option("--bundle", help="Folder of the device's bundle.")],
    out: Annotated[Path, typer.Option("--out", help="A .bin or a .hex file.")],
    passwords: Annotated[
        Path | None,
        typer.Option(help="What `devices add --out` wrote. Default: the device gets a new one."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            help="Folder with authority.pub and keyring; the device's enrolment is kept there. "
            "Default: that of --site, where it has one.",
        ),
    ] = None,
    device_makes_keys: Annotated[
        bool,
        typer.Option("--device-makes-keys", help="At its first start, where its port has entropy."),
    ] = False,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Write a device's identity, to be flashed beside the firmware."""
    from fleet.cli._simulate import image
    from fleet.service.deployment_keys import keys_of

    image(
        client_of(site, url, token, why),
        name,
        bundle,
        passwords,
        out,
        keys or (keys_of(site) if site else None),
        makes_own_keys=device_makes_keys,
        as_json=json,
    )


@devices.command("enrolment")
def devices_enrolment(
    dump: Annotated[Path, typer.Argument(help="Bytes of the device's identity region.")],
    keys: Annotated[Path, typer.Option("--keys", help="Folder whose enrolments.csv it goes into.")],
    json: Json = False,
) -> None:
    """Enrol a device that has made its keys itself, from a dump of its flash."""
    from fleet.cli._simulate import enrolment

    enrolment(dump, keys, as_json=json)


@gateways.command("add")
def gateways_add(
    name: str,
    at: Annotated[str, typer.Option("--at", help="The site where it is.")],
    out: Out = None,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Let a service know a site's gateway, or bring a retired one back."""
    from fleet.cli._devices import add_gateway

    add_gateway(client_of(site, url, token, why), name, at, out, as_json=json)


@gateways.command("retire")
def gateways_retire(
    name: str,
    site: Site = None,
    url: Url = None,
    token: Token = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Take a gateway that is gone out of everything; its broker lets it in no more."""
    from fleet.cli._devices import retire_gateway

    retire_gateway(client_of(site, url, token, why), name, as_json=json)


@gateways.command("list")
def gateways_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List gateways and when they were heard of."""
    from fleet.cli._devices import show_gateways

    show_gateways(client_of(site, url, token), as_json=json)


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

    import_bundles(client_of(site, url, token, why), bundles, model, as_json=json)


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

    import_onnx(client_of(site, url, token, why), model, file, bundle, parent, as_json=json)


@models.command("list")
def models_list(
    site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """List models."""
    from fleet.cli._models import show_list

    show_list(client_of(site, url, token), as_json=json)


@models.command("show")
def models_show(
    model: str, site: Site = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Show a model's versions."""
    from fleet.cli._models import show

    show(client_of(site, url, token), model, as_json=json)


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

    export(client_of(site, url, token), version, bundle, onnx, as_json=json)


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

    compare(client_of(site, url, token), first, second, as_json=json)


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

    release(client_of(site, url, token, why), version, as_json=json)


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

    rollback(client_of(site, url, token, why), model, as_json=json)
