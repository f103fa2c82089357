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
from fleet.cli._image import ImageFormat, enrolment_in, identity_image
from fleet.cli._output import console, print_json
from fleet.cli._progress import stage_bars
from fleet.errors import KeysError, ProtocolError
from fleet.files import write_whole
from fleet.protocol import Identity
from fleet.protocol.keys import DeviceKeys
from fleet.security.key_files import ENROLMENTS, add_enrolments
from fleet.security.provisioning import FleetKeys, new_devices
from fleet.service.client import Client
from fleet.service.deployment import Deployment
from fleet.service.deployment_keys import enrol_devices, keys_of
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
    keys: Path | None,
    *,
    makes_own_keys: bool,
    as_json: bool,
) -> None:
    """A device's identity record, with a new password unless a file has the device's own.

    `keys`: folder with whom the device is to believe; its own keys are made and enrolled there,
    unless it makes them itself.
    """
    if makes_own_keys and keys is None:
        raise CommandError(
            "--device-makes-keys goes with --keys: without an authority it makes none"
        )
    kind: ImageFormat
    match out.suffix:
        case ".bin":
            kind = "bin"
        case ".hex":
            kind = "hex"
        case _:
            raise CommandError(f"{out}: its ending says what it is to be: .bin or .hex")
    manifest, fleet = load_bundle(bundle).manifest, client.whoami().fleet
    fleet_keys = None if keys is None else FleetKeys.read(keys, fleet)
    if password_file is not None:
        password = read_passwords(password_file).get(name)
        if password is None:
            raise CommandError(f"{password_file} has no password of {name}")
        client.device(name)
    else:
        password = client.rotate_device(name).password
    identity = Identity(name, fleet, password, 0, LINK_BITS_PER_SECOND)
    device_keys, secrets, then = None, "password", ""
    if keys is not None and not makes_own_keys:
        device_keys = new_devices(keys, fleet, [name])[name]
        secrets = "password and keys"
        then = f" {keys / ENROLMENTS} is for unmaskers (`tinyfleet unmasker enrol`)."
    region = manifest.flash.identity
    content = identity_image(manifest.flash, identity, kind, fleet_keys, device_keys)
    write_whole(out, content, mode=0o600)
    if as_json:
        print_json(
            {"device": name, "file": str(out), "address": region.address, "bytes": region.bytes}
        )
        return
    if makes_own_keys:
        then = (
            f" It makes its keys at its first start; then a dump of the {region.bytes} bytes there "
            "is for `tinyfleet devices enrolment`."
        )
    console().print(
        f"{out} is {name}'s identity, to be written to {region.address:#x} beside the firmware; it "
        f"holds the device's {secrets}.{then}",
        soft_wrap=True,
    )


def enrolment(dump: Path, keys: Path, *, as_json: bool) -> None:
    """What a device that has made its keys itself is enrolled with."""
    try:
        content = dump.read_bytes()
    except OSError as error:
        raise CommandError(f"{dump}: can't be read ({error})") from None
    try:
        found = enrolment_in(content)
    except (KeysError, ProtocolError) as error:
        raise CommandError(f"{dump}: {error}") from None
    file = keys / ENROLMENTS
    add_enrolments(file, [found])
    if as_json:
        print_json({"device": found.device, "fleet": found.fleet, "file": str(file)})
        return
    console().print(
        f"{found.device} of fleet {found.fleet} is in {file}, which is for unmaskers (`tinyfleet "
        f"unmasker enrol`). {dump} has the device's secrets: delete it.",
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
    fleet_keys: FleetKeys | None = None
    device_keys: dict[str, DeviceKeys] = {}
    if keys_of(site) is not None:
        fleet_keys, device_keys = enrol_devices(site, deployment.fleet, names)
    specs = virtual_devices(
        names,
        passwords,
        folders,
        deployment.fleet,
        machine=machine,
        data=data,
        seed=seed,
        fleet_keys=fleet_keys,
        device_keys=device_keys,
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
