"""`tinyfleet keys` and `tinyfleet unmasker`, as a fleet's owner and another party call them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import KeysError, MaskRefusedError, UnmaskerError
from fleet.ports import free_port
from fleet.protocol.keys import Keyring, SignedKeyring, SigningKey
from fleet.security import Authority, key_files
from fleet.security.provisioning import FleetKeys, new_devices
from fleet.unmasker import RemoteUnmasker
from tests.fleet.cli.conftest import Run
from tests.fleet.unmasker.herd import FLEET, Cow, asked, blank
from tests.patience import wait_until

PATH = os.pathsep.join(sys.path)  # as this process has it, wherever a command begins


def made(tinyfleet: Run, *arguments: object) -> dict[str, object]:
    said = tinyfleet(*arguments, "--json")
    assert said.returncode == 0, said.stderr
    found: dict[str, object] = json.loads(said.stdout)
    return found


def test_an_authority_signs_keyrings_whose_generations_go_up(
    tinyfleet: Run, tmp_path: Path
) -> None:
    authority, task, new_task = tmp_path / "offline", tmp_path / "task", tmp_path / "new"
    public = made(tinyfleet, "keys", "authority", authority)["public"]
    assert isinstance(public, str)
    task_key = made(tinyfleet, "keys", "task", task)["public"]
    ring = ("keys", "ring", authority, "--fleet", "barn", "--task-key")
    unmasker = key_files.make_unmasker_key(tmp_path / "unmasker")
    first = made(
        tinyfleet, *ring, task / "task.pub", "--unmasker", tmp_path / "unmasker" / "unmasker.pub"
    )
    assert (first["generation"], first["task_key"]) == (1, task_key)
    assert first["unmaskers"] == [unmasker.hex()]
    signed = key_files.read_keyring(authority / "keyring")
    assert signed.is_of(bytes.fromhex(public), "barn")
    assert not signed.is_of(bytes.fromhex(public), "stable")
    # The task key is another one from now on.
    made(tinyfleet, "keys", "task", new_task)
    second = made(tinyfleet, *ring, new_task / "task.pub")
    assert (second["generation"], second["unmaskers"]) == (2, [])
    low = tinyfleet(*ring, task / "task.pub", "--generation", "2")
    assert low.returncode == 1
    assert "devices that have it would leave a lower one alone" in low.stderr
    assert made(tinyfleet, *ring, task / "task.pub", "--generation", "9")["generation"] == 9
    shown = tinyfleet("keys", "show", authority)
    assert public in shown.stdout
    for secret in (authority / "authority.key", task / "task.key"):
        assert secret.read_text().splitlines()[1][:64] not in shown.stdout


def test_the_pages_first_commands_run_as_they_stand_and_give_a_keyring(
    tinyfleet: Run, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "keys.md").read_text("utf-8")
    block = page.partition("```sh\n")[2].partition("```")[0]
    lines = [shlex.split(line) for line in block.splitlines()]
    assert [words[:3] for words in lines] == [
        ["tinyfleet", "keys", "authority"],
        ["tinyfleet", "keys", "task"],
        ["tinyfleet", "unmasker", "init"],
        ["tinyfleet", "keys", "ring"],
    ]
    for words in lines:
        done = tinyfleet(*words[1:], cwd=tmp_path, env={**os.environ, "PYTHONPATH": PATH})
        assert done.returncode == 0, done.stderr
    signed = key_files.read_keyring(tmp_path / "offline" / "keyring")
    authority = key_files.read_key(tmp_path / "offline" / "authority.pub", key_files.AUTHORITY)
    assert signed.is_of(authority, "barn")
    assert len(signed.keyring.unmaskers) == 1


def test_keys_of_another_kind_or_nobodys_end_with_one_line(tinyfleet: Run, tmp_path: Path) -> None:
    made(tinyfleet, "keys", "authority", tmp_path)
    for command, said in (
        (("keys", "authority", tmp_path), "is there already"),
        (("keys", "show", tmp_path / "none"), "has no keys"),
        (
            ("keys", "ring", tmp_path, "--fleet", "barn", "--task-key", tmp_path / "authority.pub"),
            "is a tinyfleet authority public key; a tinyfleet task public key is wanted",
        ),
        (("unmasker", "show", tmp_path), "tinyfleet unmasker init"),
        (("unmasker", "run", tmp_path), "tinyfleet unmasker init"),
    ):
        failed = tinyfleet(*command)
        assert failed.returncode == 1
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1


def test_provisioned_devices_believe_a_keyring_of_their_authority_only(tmp_path: Path) -> None:
    authority = key_files.make_signing_key(
        tmp_path, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC
    )
    task = SigningKey.generate()
    key_files.write_keyring(
        tmp_path / "keyring", SignedKeyring.sign(authority, "barn", Keyring(1, task.public))
    )
    assert FleetKeys.read(tmp_path, "barn").authority == authority.public
    with pytest.raises(KeysError, match="isn't signed for fleet stable"):
        FleetKeys.read(tmp_path, "stable")
    made = new_devices(tmp_path, "barn", ["cow-2", "cow-1"])
    assert key_files.read_enrolments(tmp_path / "enrolments.csv") == [
        made[name].enrol("barn", name) for name in ("cow-1", "cow-2")
    ]


def test_another_party_runs_an_unmasker_over_tls_and_decides_who_is_enrolled(
    tinyfleet: Run, tmp_path: Path
) -> None:
    home, port = tmp_path / "unmasker", free_port()
    ca = Authority.create(tmp_path / "ca", FLEET)
    server = ca.issue("unmasker", ("127.0.0.1",))
    where = ("--host", "0.0.0.0", "--port", port)
    refused = tinyfleet("unmasker", "init", home, "--fleet", FLEET, *where)
    assert refused.returncode == 1
    assert "in the clear" in refused.stderr
    tls = ("--certificate", server.certificate, "--key", server.key)
    told = tinyfleet("unmasker", "init", home, "--fleet", FLEET, "--least", 3, *where, *tls)
    assert "separation of duty alone" in told.stdout
    public = key_files.read_key(home / "unmasker.pub", key_files.UNMASKER)
    cows = [Cow(f"cow-{number}") for number in range(4)]
    key_files.write_enrolments(tmp_path / "enrolments.csv", [cow.enrolment() for cow in cows])
    enrolled = made(tinyfleet, "unmasker", "enrol", home, tmp_path / "enrolments.csv")
    assert enrolled == {"enrolled": [cow.name for cow in cows], "devices": 4}
    process = subprocess.Popen([sys.executable, "-m", "fleet.cli", "unmasker", "run", str(home)])
    try:
        url, token = f"https://127.0.0.1:{port}", (home / "token").read_text().strip()
        with closing(RemoteUnmasker(url, token, ca=ca.certificate)) as client:

            def answers() -> bool:
                try:
                    return client.facts().key == public
                except UnmaskerError:
                    return False

            wait_until(answers)
            request, _ = asked(cows, blank(), public)
            masks = client.masks(request)
            # It need not be stopped for that.
            made(tinyfleet, "unmasker", "revoke", home, "cow-1")
            with pytest.raises(MaskRefusedError, match="unknown-device"):
                client.masks(asked(cows, blank(round=2), public)[0])
            process.kill()
            process.wait()
            with pytest.raises(UnmaskerError, match="doesn't answer"):
                client.facts()
            process = subprocess.Popen(
                [sys.executable, "-m", "fleet.cli", "unmasker", "run", str(home)]
            )
            wait_until(answers)
            assert np.array_equal(client.masks(request), masks)
        assert tinyfleet("health", home / "unmasker.toml").returncode == 0
        shown = made(tinyfleet, "unmasker", "show", home)
        assert shown["refusals"] == {"unknown-device": 1}
        assert (shown["sets"], shown["key"]) == (1, public.hex())
        made(tinyfleet, "unmasker", "token", home)
        with (
            closing(RemoteUnmasker(url, token, ca=ca.certificate)) as client,
            pytest.raises(UnmaskerError, match="doesn't know the token"),
        ):
            client.facts()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "doesn't answer" in tinyfleet("health", home / "unmasker.toml").stdout
    finally:
        process.kill()
        process.wait()
