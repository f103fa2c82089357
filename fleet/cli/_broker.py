"""What `tinyfleet broker` writes: the folder of a site's broker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fleet.cli._output import console, print_json
from fleet.errors import ConfigurationError
from fleet.gateway.broker import (
    ACCESS_FILE,
    OWN_FILE,
    PASSWORD_FILE,
    BrokerConfig,
    Tls,
    new_passwords,
    write_broker_config,
)
from fleet.gateway.config import BrokerSettings


def write_config(
    *,
    out: Path,
    fleet: str,
    gateways: Sequence[str],
    host: str,
    port: int,
    tls: Tls | None,
    as_json: bool,
) -> None:
    """Write the folder; passwords that no file holds yet are made."""
    files = _password_files(gateways)
    missing = [] if tls is None else [p for p in (tls.certificate, tls.key) if not p.is_file()]
    if missing:
        raise ConfigurationError(
            f"{missing[0]}: there is no such file; make one with: tinyfleet ca issue"
        )
    # All names are looked at before the first file is made.
    BrokerConfig(fleet, dict.fromkeys(files, ""), host=host, port=port, tls=tls)
    made = [path for name, path in files.items() if _make_password(name, path)]
    passwords = {
        name: BrokerSettings(user=name, password_file=path).password()
        for name, path in files.items()
    }
    config = BrokerConfig(fleet, passwords, host=host, port=port, tls=tls)
    path = write_broker_config(out, config)
    if as_json:
        print_json(
            {
                "config": str(path),
                "files": [str(path.with_name(n)) for n in (PASSWORD_FILE, ACCESS_FILE, OWN_FILE)],
                "new_password_files": [str(one) for one in made],
            }
        )
        return
    for one in made:
        console().print(f"{one} has a new password.", soft_wrap=True)
    console().print(f"Start the broker with: mosquitto -c {path}", soft_wrap=True)


def _password_files(gateways: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in gateways:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigurationError(
                f"--gateway {text}: a name and the file of its password are wanted, such as "
                f"north=north.password"
            )
        if name in files:
            raise ConfigurationError(f"--gateway {name}: is there twice; leave one away")
        files[name] = Path(path)
    return files


def _make_password(name: str, path: Path) -> bool:
    """Whether there was none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigurationError(
            f"--gateway {name}: {path} can't be made ({error}); choose another file"
        ) from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(new_passwords([name])[name] + "\n")
    return True
