"""Commands about keys of a fleet, and those of an unmasker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.command_options import Json

keys = typer.Typer(
    help="The fleet's keys: its authority, the task key, keyrings.", no_args_is_help=True
)
unmasker = typer.Typer(help="A service that adds up masks.", no_args_is_help=True)

KeysFolder = Annotated[Path, typer.Argument(help="Folder of the keys.")]
UnmaskerFolder = Annotated[Path, typer.Argument(help="Folder of the unmasker.")]
Fleet = Annotated[str, typer.Option(help="Name of the fleet, as in topics.")]
Host = Annotated[str | None, typer.Option(help="Where it listens; beyond this machine with TLS.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535)]
Certificate = Annotated[Path | None, typer.Option(help="Its TLS certificate; with --key.")]
TlsKey = Annotated[Path | None, typer.Option("--key", help="The certificate's key.")]


def add_commands(app: typer.Typer) -> None:
    """Everything of this module."""
    app.add_typer(keys, name="keys")
    app.add_typer(unmasker, name="unmasker")


# Keys


@keys.command("authority")
def keys_authority(folder: KeysFolder, json: Json = False) -> None:
    """Make the authority, which signs keyrings; its secret can stay offline."""
    from fleet.cli._keys import authority

    authority(folder, as_json=json)


@keys.command("task")
def keys_task(folder: KeysFolder, json: Json = False) -> None:
    """Make a task key, by which devices know the coordinator's tasks."""
    from fleet.cli._keys import task

    task(folder, as_json=json)


@keys.command("ring")
def keys_ring(
    folder: Annotated[Path, typer.Argument(help="Folder of the authority; the keyring is there.")],
    fleet: Fleet,
    task_key: Annotated[
        Path, typer.Option("--task-key", help="Public key of whoever signs tasks: task.pub.")
    ],
    unmasker: Annotated[
        list[Path] | None,
        typer.Option(help="An unmasker's public key, unmasker.pub; all are needed; three at most."),
    ] = None,
    generation: Annotated[
        int | None,
        typer.Option(min=1, help="Default: one more than that of the keyring in the folder."),
    ] = None,
    json: Json = False,
) -> None:
    """Sign a keyring: whose tasks devices take, and for whom they mask."""
    from fleet.cli._keys import ring

    ring(folder, fleet, task_key, unmasker or [], generation, as_json=json)


@keys.command("show")
def keys_show(folder: KeysFolder, json: Json = False) -> None:
    """Show which keys a folder has, and what its keyring says. No secret is shown."""
    from fleet.cli._keys import show

    show(folder, as_json=json)


# The unmasker


@unmasker.command("init")
def unmasker_init(
    folder: UnmaskerFolder,
    fleet: Fleet,
    least: Annotated[int, typer.Option(min=2, max=256, help="Devices of a set, at least.")] = 5,
    host: Host = None,
    port: Port = None,
    certificate: Certificate = None,
    key: TlsKey = None,
    json: Json = False,
) -> None:
    """Make an unmasker with keys of its own."""
    from fleet.cli._unmasker import init

    init(folder, fleet, least, host, port, certificate, key, as_json=json)


@unmasker.command("enrol")
def unmasker_enrol(
    folder: UnmaskerFolder,
    file: Annotated[Path, typer.Argument(help="Enrolments, as `devices image --keys` keeps them.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Also of devices that have other keys, or none.")
    ] = False,
    json: Json = False,
) -> None:
    """Enrol devices: whoever does this can fill a set."""
    from fleet.cli._unmasker import enrol

    enrol(folder, file, replace=replace, as_json=json)


@unmasker.command("revoke")
def unmasker_revoke(folder: UnmaskerFolder, device: str, json: Json = False) -> None:
    """Refuse sets that have a device from now on."""
    from fleet.cli._unmasker import revoke

    revoke(folder, device, as_json=json)


@unmasker.command("token")
def unmasker_token(folder: UnmaskerFolder, json: Json = False) -> None:
    """Make a new token for the coordinator; the one before is good no more."""
    from fleet.cli._unmasker import renew_token

    renew_token(folder, as_json=json)


@unmasker.command("rotate")
def unmasker_rotate(folder: UnmaskerFolder, json: Json = False) -> None:
    """Make a new key; masks that were made for the one before can't be told any more."""
    from fleet.cli._unmasker import rotate

    rotate(folder, as_json=json)


@unmasker.command("run")
def unmasker_run(
    folder: UnmaskerFolder,
    host: Host = None,
    port: Port = None,
    certificate: Certificate = None,
    key: TlsKey = None,
) -> None:
    """Run an unmasker."""
    from fleet.cli._unmasker import run

    run(folder, host, port, certificate, key)


@unmasker.command("show")
def unmasker_show(folder: UnmaskerFolder, json: Json = False) -> None:
    """Show who is enrolled, which sets were answered, what was refused."""
    from fleet.cli._unmasker import show

    show(folder, as_json=json)
