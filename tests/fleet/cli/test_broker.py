"""`tinyfleet broker`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleet.gateway.broker import find_mosquitto
from fleet.ports import free_port
from fleet.security import Authority
from tests.fleet.cli.conftest import Run
from tests.patience import wait_until


def test_a_broker_lets_a_gateway_in_with_the_password_that_was_made(
    tinyfleet: Run, tmp_path: Path
) -> None:
    authority = Authority.create(tmp_path / "ca", "barn")
    issued = authority.issue("broker", ["127.0.0.1"])
    secret, out, ports = tmp_path / "north.password", tmp_path / "site", (free_port(), free_port())
    command = [
        *("broker", "config", "--out", str(out), "--fleet", "barn"),
        *("--gateway", f"north={secret}", "--port", str(ports[0]), "--tls-port", str(ports[1])),
        *("--tls-cert", str(issued.certificate), "--tls-key", str(issued.key)),
        *("--tls-host", "127.0.0.1", "--json"),
    ]
    written = json.loads(tinyfleet(*command).stdout)
    assert written["new_password_files"] == [str(secret)]
    assert secret.stat().st_mode & 0o777 == 0o600
    password = secret.read_text()
    assert all(password.strip() not in Path(path).read_text() for path in written["files"])
    again = json.loads(tinyfleet(*command).stdout)
    assert again == {**written, "new_password_files": []}
    assert secret.read_text() == password
    config = [find_mosquitto(), "-c", written["config"]]
    with subprocess.Popen(config, stderr=subprocess.DEVNULL) as broker:
        for port in ports:
            client = paho.Client(CallbackAPIVersion.VERSION2, "north", protocol=paho.MQTTv5)
            client.username_pw_set("north", password.strip())
            if port == ports[1]:
                client.tls_set(str(authority.certificate))
            client.connect_async("127.0.0.1", port)
            client.loop_start()
            wait_until(client.is_connected)
            client.disconnect()
            client.loop_stop()
        broker.terminate()


def test_what_can_not_be_written_is_named_and_nothing_is_made(
    tinyfleet: Run, tmp_path: Path
) -> None:
    out = tmp_path / "site"
    secret = f"north={tmp_path / 'p'}"
    none = str(tmp_path / "none")
    for options, problem in (
        (["--gateway", "north"], "north=north.password"),
        (["--gateway", secret, "--gateway", secret], "is there twice"),
        (["--gateway", f"no rth={none}"], "'no rth' is no name"),
        (["--gateway", secret, "--tls-cert", none, "--tls-key", none], "tinyfleet ca issue"),
        (["--gateway", secret, "--tls-cert", none], "a certificate and its key go together"),
    ):
        failed = tinyfleet("broker", "config", "--out", str(out), "--fleet", "barn", *options)
        assert failed.returncode != 0
        assert problem in failed.stderr
        assert not list(tmp_path.iterdir())
