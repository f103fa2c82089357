"""What `tinyfleet unmasker` does: a service that adds up masks, and who is enrolled at it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pydantic import ValidationError

from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json, table
from fleet.protocol import fields
from fleet.security import key_files
from fleet.security.listening import ListenSettings
from fleet.unmasker import folder as unmaskers
from fleet.unmasker.folder import UnmaskerSettings
from fleet.unmasker.logic import near_sets

SHOWN_SETS, COMPARED_SETS = 20, 1000
SHOWN_DEVICES = 20
ONE_OWNER = (
    "Whoever has both the unmasker and the gateways can unmask each delta. Run by one owner, masks "
    "are separation of duty alone: nobody sees a delta by accident or with one machine's disk; "
    "the owner can, if they want to."
)


def listening(
    given: ListenSettings,
    host: str | None,
    port: int | None,
    certificate: Path | None,
    key: Path | None,
) -> ListenSettings:
    """Where it listens, with what the options say instead."""
    options = {"host": host, "port": port, "certificate": certificate, "key": key}
    changes = {name: value for name, value in options.items() if value is not None}
    try:
        return ListenSettings.model_validate({**given.model_dump(), **changes})
    except ValidationError as error:
        raise CommandError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def init(
    folder: Path,
    fleet: str,
    least_devices: int,
    host: str | None,
    port: int | None,
    certificate: Path | None,
    key: Path | None,
    *,
    as_json: bool,
) -> None:
    """Make an unmasker."""
    fields.name("unmasker", "fleet", fleet)
    paths = [None if one is None else one.absolute() for one in (certificate, key)]
    listen = listening(ListenSettings(port=unmaskers.PORT), host, port, *paths)
    settings = UnmaskerSettings(fleet=fleet, least_devices=least_devices, listen=listen)
    public = unmaskers.make(folder, settings)
    file, token = folder / key_files.UNMASKER_PUBLIC, folder / unmaskers.TOKEN
    if as_json:
        told = {"key": str(file), "public": public.hex(), "token": str(token), "url": listen.url}
        print_json(told)
        return
    console().print(
        f"{file} is the public key: whoever has the fleet's authority puts it into the "
        f"keyring (`tinyfleet keys ring`). {token} is what the coordinator asks with, "
        f"tell it to nobody else. {ONE_OWNER}",
        soft_wrap=True,
    )


def enrol(folder: Path, file: Path, *, replace: bool, as_json: bool) -> None:
    """Take over what devices have signed."""
    settings = UnmaskerSettings.read(folder)
    enrolments = key_files.read_enrolments(file)
    unmasker = unmaskers.open_unmasker(folder)
    try:
        changed = unmasker.store.enrol(enrolments, settings.fleet, time.time(), replace=replace)
        good = unmasker.facts().devices
    finally:
        unmasker.store.close()
    if as_json:
        print_json({"enrolled": changed, "devices": good})
        return
    named = ", ".join(changed[:SHOWN_DEVICES]) + ("…" if len(changed) > SHOWN_DEVICES else "")
    console().print(
        f"{len(changed)} devices are new or have new keys{': ' if changed else ''}{named}. "
        f"{good} are enrolled.",
        soft_wrap=True,
    )


def revoke(folder: Path, device: str, *, as_json: bool) -> None:
    """Count a device no more."""
    unmasker = unmaskers.open_unmasker(folder)
    try:
        unmasker.store.revoke(device, time.time())
    finally:
        unmasker.store.close()
    if as_json:
        print_json({"device": device, "revoked": True})
        return
    console().print(
        f"A set with {device} is refused from now on; `tinyfleet devices retire {device}` keeps "
        "it from being asked.",
        soft_wrap=True,
    )


def renew_token(folder: Path, *, as_json: bool) -> None:
    """A new token for the coordinator."""
    UnmaskerSettings.read(folder)
    unmaskers.renew_token(folder)
    path = folder / unmaskers.TOKEN
    if as_json:
        print_json({"token": str(path)})
        return
    console().print(f"{path} is for the coordinator; the token before is good no more.")


def rotate(folder: Path, *, as_json: bool) -> None:
    """A new key."""
    UnmaskerSettings.read(folder)
    public = key_files.make_unmasker_key(folder, replace=True)
    path = folder / key_files.UNMASKER_PUBLIC
    if as_json:
        print_json({"key": str(path), "public": public.hex()})
        return
    console().print(
        f"{path} is the new public key: sign a keyring with it (`tinyfleet keys ring`), give that "
        "to the coordinator, and start the unmasker again. Who is enrolled, and which sets were "
        "answered, stays.",
        soft_wrap=True,
    )


def show(folder: Path, *, as_json: bool) -> None:
    """Who is enrolled, which sets were answered, what was refused."""
    settings = UnmaskerSettings.read(folder)
    unmasker = unmaskers.open_unmasker(folder)
    try:
        facts, devices = unmasker.facts(), unmasker.store.devices()
        sets, count = unmasker.store.sets(COMPARED_SETS), unmasker.store.count_sets()
        refusals = unmasker.store.refusals()
    finally:
        unmasker.store.close()
    near = near_sets(sets, settings.least_devices)
    newest = sets[-SHOWN_SETS:]
    if as_json:
        print_json(
            {
                "fleet": facts.fleet,
                "key": facts.key.hex(),
                "least_devices": facts.least_devices,
                "devices": [
                    {
                        "device": one.device,
                        "exchange_key": one.exchange_key.hex(),
                        "enrolled": one.enrolled,
                        "revoked": one.revoked,
                    }
                    for one in devices
                ],
                "sets": count,
                "newest_sets": [
                    {
                        "campaign": one.campaign.hex(),
                        "round": one.round,
                        "plan": one.plan.hex(),
                        "devices": list(one.devices),
                        "at": one.at,
                    }
                    for one in newest
                ],
                "near_sets": [
                    {
                        "campaign": one.later.campaign.hex(),
                        "rounds": [one.earlier.round, one.later.round],
                        "devices": list(one.devices),
                    }
                    for one in near
                ],
                "refusals": dict(refusals),
            }
        )
        return
    revoked = sum(one.revoked is not None for one in devices)
    console().print(
        f"Unmasker of fleet {facts.fleet}, key {facts.key.hex()}: {facts.devices} devices are "
        f"enrolled, {revoked} revoked. Sets of {facts.least_devices} and more: {count} answered.",
        soft_wrap=True,
    )
    rows = [
        [one.campaign.hex(), one.round, one.plan.hex()[:12], len(one.devices)] for one in newest
    ]
    if rows:
        columns = ["campaign", "round", "plan begins with", "devices"]
        console().print(table("Newest sets", columns, rows))
    if near:
        console().print(
            table(
                "Sets of neighbouring rounds that differ by few devices: what these taught is near "
                "to the difference of the sums",
                ["campaign", "rounds", "devices"],
                [
                    [
                        one.later.campaign.hex(),
                        f"{one.earlier.round}, {one.later.round}",
                        ", ".join(one.devices),
                    ]
                    for one in near
                ],
            )
        )
    if refusals:
        console().print(table("Refused", ["kind", "requests"], list(map(list, refusals.items()))))


def run(
    folder: Path, host: str | None, port: int | None, certificate: Path | None, key: Path | None
) -> None:
    """Run an unmasker until it is told to stop."""
    from fleet.service.log import log_as_json
    from fleet.unmasker.service import serve

    settings = UnmaskerSettings.read(folder)
    listen = listening(settings.listen, host, port, certificate, key)
    log_as_json()
    serve(
        unmaskers.open_unmasker(folder),
        listen,
        lambda: logging.getLogger(__name__).info("the unmasker answers at %s", listen.url),
    )
