"""`tinyfleet devices`: who is in the fleet."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fleet.cli._errors import CommandError
from fleet.cli._output import console, percent, print_json, table
from fleet.cli._progress import stage_bars
from fleet.cli._service import ago
from fleet.files import write_whole
from fleet.service.client import Client
from fleet.service.schema import DeviceToAdd, DeviceView, Password

_COLUMNS = ("device", "site")


def parse_labels(labels: Sequence[str]) -> dict[str, str | None]:
    """NAME=VALUE sets one, NAME= takes it away."""
    found: dict[str, str | None] = {}
    for text in labels:
        name, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"label {text}: write NAME=VALUE, or NAME= to take it away")
        found[name] = value or None
    return found


def add(
    client: Client,
    names: Sequence[str],
    site: str,
    labels: Sequence[str],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Register devices of one site."""
    wanted = {name: value for name, value in parse_labels(labels).items() if value is not None}
    devices = [DeviceToAdd(device=name, site=site, labels=wanted) for name in names]
    _register(client, devices, out, as_json=as_json)


def import_csv(client: Client, path: Path, out: Path | None, *, as_json: bool) -> None:
    """Register the devices of a CSV file: device, site, then a column for each label."""
    devices = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise CommandError(
                    f"{path} has no column {missing[0]}; its first line names the columns: "
                    "device,site and then one for each label"
                )
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise CommandError(
                        f"{path}, line {number}: it has more or fewer fields than the first line"
                    )
                devices.append(_device_of(path, number, row))
    except UnicodeDecodeError:
        raise CommandError(f"{path} isn't UTF-8 text") from None
    if not devices:
        raise CommandError(f"{path} names no device")
    _register(client, devices, out, as_json=as_json)


def _register(
    client: Client, devices: Sequence[DeviceToAdd], out: Path | None, *, as_json: bool
) -> None:
    passwords: list[Password] = []
    try:
        with stage_bars(hidden=as_json) as tell:
            for page in client.add_all_devices(devices):
                passwords += page
                tell("registering devices", len(passwords), len(devices))
    finally:
        # Those that are in when one is refused are told all the same: nobody can ask again.
        if passwords:
            _told_once(passwords, out, as_json=as_json)


def _device_of(path: Path, number: int, row: dict[str, str]) -> DeviceToAdd:
    labels = {name: value for name, value in row.items() if name not in _COLUMNS and value}
    try:
        return DeviceToAdd(device=row["device"], site=row["site"], labels=labels)
    except ValueError as error:
        what = str(error).splitlines()
        raise CommandError(f"{path}, line {number}: {' '.join(what[1:3]).strip()}") from None


def _told_once(passwords: Sequence[Password], out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        lines = ["device,password", *(f"{one.device},{one.password}" for one in passwords)]
        write_whole(out, "\n".join(lines) + "\n", mode=0o600)
    if as_json:
        shown = [
            {"device": one.device, **({} if out else {"password": one.password})}
            for one in passwords
        ]
        print_json({"devices": shown, "passwords": str(out) if out else None})
        return
    if out is not None:
        console().print(f"{len(passwords):,} devices added; their passwords are in {out}.")
        return
    rows = [[one.device, one.password] for one in passwords]
    console().print(table("Passwords, told once", ["device", "password"], rows))


def show_list(client: Client, filter: str, limit: int, *, as_json: bool) -> None:
    """Devices that match."""
    page = client.devices(filter, limit=limit)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    rows = [
        [
            one.device,
            one.site,
            one.board or "",
            one.version or (one.current or "")[:8],
            "retired" if one.retired else _presence(one),
            ago(one.seen_age_seconds if one.last_seen else None),
            ", ".join(f"{name}={value}" for name, value in one.labels.items()),
        ]
        for one in page.devices
    ]
    columns = ["device", "site", "board", "version", "state", "heard", "labels"]
    console().print(table("Devices", columns, rows))
    if page.next:
        console().print(f"There are more behind {page.next}; --limit shows more at once.")


def export(client: Client, filter: str, out: Path | None) -> None:
    """All devices that match, a JSON object a line, to a file or the screen."""
    lines = client.export_devices(filter)
    if out is None:
        for line in lines:
            print(line)
        return
    # Beside it first: a service that is lost on the way leaves no half of a file.
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    console().print(f"{out} has them, a line each.")


def _presence(one: DeviceView) -> str:
    if one.online is None:
        return "new"
    return "online" if one.online else "offline"


def preview(client: Client, filter: str, *, as_json: bool) -> None:
    """Which devices a filter means, and why it doesn't mean the others."""
    found = client.preview_devices(filter)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    names = ", ".join(one.device for one in found.sample)
    console().print(f"{found.count:,} devices match: {names or 'none'}", soft_wrap=True)
    rows = [[part, count] for part, count in found.reasons.items()]
    if rows:
        console().print(table("Not true of others", ["part", "devices"], rows))


def show(client: Client, name: str, *, as_json: bool) -> None:
    """One device with its history."""
    device, history = client.device(name), client.device_history(name)
    if as_json:
        print_json(
            {
                "device": device.model_dump(mode="json"),
                "history": [one.model_dump(mode="json") for one in history],
            }
        )
        return
    facts = [[key, value] for key, value in device.model_dump().items() if value is not None]
    console().print(table(f"Device {name}", ["field", "value"], facts))
    rows = [
        [
            one.campaign,
            one.round,
            one.kind,
            _score(one.correct_before, one.held_out, one.loss_before),
            _score(one.correct_after, one.held_out, one.loss_after),
            _share(one.correct_local, one.held_out),
            one.kept or "",
            one.coded_bytes or 0,
        ]
        for one in history
    ]
    columns = ["campaign", "round", "kind", "before", "after", "alone", "uses", "bytes"]
    console().print(table("Rounds, newest first", columns, rows))


def _share(right: int | None, of: int | None) -> str:
    return percent(right / of if of and right is not None else None)


def _score(right: int | None, of: int | None, loss: float | None) -> str:
    """Accuracy; of a model of values its loss."""
    if right is None and of and loss is not None:
        return f"loss {loss:.3f}"
    return _share(right, of)


def label(client: Client, name: str, labels: Sequence[str], *, as_json: bool) -> None:
    """Set and take away labels."""
    _print_device(client.label_device(name, parse_labels(labels)), as_json=as_json)


def retire(client: Client, name: str, *, as_json: bool) -> None:
    """Take a device out of everything."""
    _print_device(client.retire_device(name), as_json=as_json)


def _print_device(device: DeviceView, *, as_json: bool) -> None:
    if as_json:
        print_json({"device": device.model_dump(mode="json")})
        return
    labels = ", ".join(f"{name}={value}" for name, value in device.labels.items()) or "no labels"
    state = "retired" if device.retired else "in use"
    console().print(f"{device.device} at {device.site}: {state}, {labels}")


def rotate(client: Client, name: str, out: Path | None, *, as_json: bool) -> None:
    """A new password."""
    _told_once([client.rotate_device(name)], out, as_json=as_json)


def erase(client: Client, name: str, *, as_json: bool) -> None:
    """Forget a device."""
    client.erase_device(name)
    if as_json:
        print_json({"erased": name})
    else:
        console().print(f"{name} and all that it reported are forgotten.")


def add_gateway(client: Client, name: str, site: str, out: Path | None, *, as_json: bool) -> None:
    """A gateway, with the password for its site's broker where `broker config` hasn't named it."""
    password = client.add_gateway(name, site).password
    if out is not None:
        write_whole(out, password + "\n", mode=0o600)
    if as_json:
        shown = {"password_file": str(out)} if out else {"password": password}
        print_json({"gateway": name, "site": site, **shown})
        return
    told = f"is in {out}" if out else f"is {password}, told once"
    console().print(
        f"{name} is a gateway of site {site}. Its password at the broker {told}; where `broker "
        "config` has named it, the one that was made there stays.",
        soft_wrap=True,
    )


def retire_gateway(client: Client, name: str, *, as_json: bool) -> None:
    """Take a gateway out of everything."""
    found = client.retire_gateway(name)
    if as_json:
        print_json({"gateway": found.model_dump(mode="json")})
        return
    console().print(
        f"{name} of site {found.site} is retired. Its broker's own configuration and the "
        "coordinator's gateway_keys may still name it: take it out there.",
        soft_wrap=True,
    )


def show_gateways(client: Client, *, as_json: bool) -> None:
    """All gateways."""
    found = client.gateways()
    if as_json:
        print_json({"gateways": [one.model_dump(mode="json") for one in found]})
        return
    rows = [
        [
            one.gateway,
            one.site,
            "retired" if one.retired else "in use",
            ago(one.seen_age_seconds),
            one.problem,
        ]
        for one in found
    ]
    console().print(table("Gateways", ["gateway", "site", "state", "heard", "problem"], rows))
