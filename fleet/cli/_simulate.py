"""`tinyfleet simulate` and `tinyfleet devices image`: devices without, and with, hardware."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from codegen.firmware.bundle import load_bundle
from fleet.attach import Attached, Place, virtual_devices
from fleet.cli._errors import CommandError
from fleet.cli._image import ImageFormat, identity_image
from fleet.cli._output import console, print_json
from fleet.cli._progress import stage_bars
from fleet.files import write_whole
from fleet.protocol import Identity
from fleet.service.client import Client
from fleet.service.deployment import Deployment
from fleet.service.schema import DeviceToAdd

ONLINE_SECONDS = 300.0
LINK_BITS_PER_SECOND = 115_200
ACCESS_SECONDS = 3.0
LOOK_SECONDS = 1.0


def image(
    client: Client,
    name: str,
    bundle: Path,
    password_file: Path | None,
    out: Path,
    *,
    as_json: bool,
) -> None:
    """A device's identity record, with a new password unless a file has the device's own."""
    kind: ImageFormat
    match out.suffix:
        case ".bin":
            kind = "bin"
        case ".hex":
            kind = "hex"
        case _:
            raise CommandError(f"{out}: its ending says what it is to be: .bin or .hex")
    manifest, fleet = load_bundle(bundle).manifest, client.whoami().fleet
    if password_file is not None:
        password = read_passwords(password_file).get(name)
        if password is None:
            raise CommandError(f"{password_file} has no password of {name}")
        client.device(name)
    else:
        password = client.rotate_device(name).password
    identity = Identity(name, fleet, password, 0, LINK_BITS_PER_SECOND)
    content = identity_image(manifest.flash, identity, kind)
    write_whole(out, content, mode=0o600)
    if as_json:
        print_json({"device": name, "file": str(out), "address": manifest.flash.identity.address})
        return
    console().print(
        f"{out} is {name}'s identity, to be written to {manifest.flash.identity.address:#x} "
        "beside the firmware; it holds the device's password.",
        soft_wrap=True,
    )


def read_passwords(path: Path) -> dict[str, str]:
    """Of the file that `devices add --out` writes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0] != "device,password":
        raise CommandError(f"{path}: its first line isn't device,password")
    return dict(line.split(",", 1) for line in lines[1:])


def simulate(
    site: Path,
    client: Client,
    bundles: Sequence[Path],
    *,
    count: int,
    prefix: str,
    machine: str,
    data: Path | None,
    seed: int,
    shuffle_training_labels: str,
    shuffle_held_out_labels: str,
    seconds: float | None,
) -> None:
    """Attach virtual devices to a running deployment until Ctrl-C, or for some seconds."""
    deployment = Deployment.read(site)
    folders = {load_bundle(path).manifest.board.name: path for path in bundles}
    if len(folders) != len(bundles):
        raise CommandError("two of the bundles are for one board")
    names = [f"{prefix}{number:02}" for number in range(1, count + 1)]
    sites = list(deployment.sites)
    of_site = {name: sites[number % len(sites)] for number, name in enumerate(names)}
    passwords = _passwords(client, prefix, of_site)
    specs = virtual_devices(
        names,
        passwords,
        folders,
        deployment.fleet,
        machine=machine,
        data=data,
        seed=seed,
        shuffle_training_labels=_matching(client, names, shuffle_training_labels),
        shuffle_held_out_labels=_matching(client, names, shuffle_held_out_labels),
    )
    places = {
        Place("127.0.0.1", ports.plain): [one for one in specs if of_site[one.device] == name]
        for name, ports in deployment.sites.items()
    }
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Attached({place: devices for place, devices in places.items() if devices}) as attached:
        _wait_online(attached, client, names, stop)
        console().print(f"{count} devices are attached; Ctrl-C takes them away.")
        stop.wait(seconds)


def _passwords(client: Client, prefix: str, of_site: dict[str, str]) -> dict[str, str]:
    """Registered are those that aren't yet; those that are get new passwords."""
    known = {one.device: one.site for one in client.all_devices(f'device.startsWith("{prefix}")')}
    for name, site in of_site.items():
        if known.get(name, site) != site:
            raise CommandError(f"device {name} is one of site {known[name]}; use another --prefix")
    new = [DeviceToAdd(device=name, site=of_site[name]) for name in of_site if name not in known]
    passwords = {one.device: one.password for page in client.add_all_devices(new) for one in page}
    passwords |= {name: client.rotate_device(name).password for name in of_site if name in known}
    # Brokers hear of it within seconds; a device that is refused tries again later than that.
    time.sleep(ACCESS_SECONDS)
    return passwords


def _matching(client: Client, names: Sequence[str], filter: str) -> list[str]:
    if not filter:
        return []
    found = {one.device for one in client.all_devices(filter)}
    return [name for name in names if name in found]


def _wait_online(
    attached: Attached, client: Client, names: Sequence[str], stop: threading.Event
) -> None:
    """Until the service has heard of them all."""
    end = time.monotonic() + ONLINE_SECONDS
    with stage_bars(hidden=False) as tell:
        while not stop.is_set():
            heard = {one.device for one in client.all_devices("online")}
            online = attached.online() & heard
            tell("booting devices", len(online), len(names))
            if len(online) == len(names):
                return
            faults = [one.fault for one in attached.stats().values() if one.fault]
            if faults:
                raise CommandError(f"a device stopped: {faults[0]}")
            if time.monotonic() > end:
                missing = ", ".join(sorted(set(names) - online)[:8])
                raise CommandError(f"not online after {ONLINE_SECONDS:.0f} s: {missing}")
            stop.wait(LOOK_SECONDS)
