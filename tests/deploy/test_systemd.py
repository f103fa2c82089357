"""The units of deploy/systemd: what they start exists, and systemd takes them where it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from fleet.cli import app
from fleet.service.gateway_site import RESTART_SECONDS

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "RestrictSUIDSGID": "yes",
    "UMask": "0077",
}


def values(unit: Path) -> dict[str, str]:
    """Settings by name; none of ours stands twice."""
    lines = [
        line.partition("=")
        for line in unit.read_text("utf-8").splitlines()
        if "=" in line and not line.startswith("#")
    ]
    names = [name for name, _, _ in lines]
    assert len(set(names)) == len(names), unit.name
    return {name: value for name, _, value in lines}


def test_there_is_a_unit_for_each_part() -> None:
    assert [one.name for one in UNITS] == [
        "tinyfleet-coordinator.service",
        "tinyfleet-gateway@.service",
        "tinyfleet-mosquitto.service",
        "tinyfleet-unmasker.service",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda one: one.name)
def test_a_unit_is_restarted_for_ever_and_may_do_little(unit: Path) -> None:
    known = values(unit)
    assert (known["Restart"], known["StartLimitIntervalSec"]) == ("always", "0")
    assert {name: known[name] for name in HARDENED} == HARDENED
    assert (known["User"], known["StateDirectoryMode"]) == ("tinyfleet", "0700")
    if "gateway" in unit.name:
        assert int(known["RestartSec"]) == RESTART_SECONDS
        assert known["User"] == values(ROOT / "deploy/systemd/tinyfleet-mosquitto.service")["User"]


@pytest.mark.parametrize(
    "unit", [one for one in UNITS if "mosquitto" not in one.name], ids=lambda one: one.name
)
def test_what_a_unit_starts_is_a_command_of_ours(unit: Path) -> None:
    program, *words = values(unit)["ExecStart"].split()
    assert Path(program).name == "tinyfleet"
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for one in command.params for option in one.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_what_the_page_on_backups_does_as_root_fits_the_unit() -> None:
    known = values(ROOT / "deploy" / "systemd" / "tinyfleet-coordinator.service")
    page = (ROOT / "docs" / "howto" / "back-up.md").read_text("utf-8")
    part = page.partition("With systemd")[2].partition("## What is in it")[0]
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", part, re.S) for line in block.split("\n")
    ]
    file, user = known["EnvironmentFile"].removeprefix("-"), known["User"]
    settings = Path(known["ExecStart"].split()[-1]).parent
    assert [one for one in lines if one] == [
        f"set -a; . {file}; set +a",
        f"chown -R {user}: {settings}",
        f"chown root: {file}",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda one: one.name)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze isn't installed: units were only read")
    # The programs and the user aren't on this machine: those that are stand for them.
    text = re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", unit.read_text("utf-8"), flags=re.MULTILINE)
    copy = tmp_path / unit.name.replace("@", "@north")
    copy.write_text(re.sub(r"^(User|Group)=\w+$", r"\1=root", text, flags=re.MULTILINE))
    found = subprocess.run(
        [program, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    said = found.stdout + found.stderr
    if "Failed to initialize manager" in said or "Host is down" in said:
        pytest.skip(f"systemd-analyze doesn't work here: {said.strip()}")
    assert (found.returncode, said) == (0, "")
