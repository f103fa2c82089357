from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement

from codegen.firmware import boards
from fleet.cli import _roles, app
from fleet.cli._doctor import TOOLS, check_package, check_tool
from fleet.cli._errors import CommandError, is_expected, message_of
from fleet.errors import CodingError
from simulator.machines.protocol import Capability
from simulator.machines.registry import MACHINES
from tests.fleet.cli.conftest import Run


def test_help_names_every_command_and_imports_nothing_heavy(tinyfleet: Run) -> None:
    shown = tinyfleet("--help")
    assert shown.returncode == 0
    for command in (
        "compile",
        "plan",
        "measure",
        "explain",
        "demo",
        "doctor",
        "boards",
        "machines",
    ):
        assert command in shown.stdout
    heavy = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, fleet.cli;"
            "heavy = {'matplotlib', 'numpy', 'onnx', 'flwr', 'unicorn'};"
            "print(heavy & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert heavy.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "arguments",
    [["compile"], ["demo", "--devices", "none"], ["demo", "--devices", "1"], ["fly"], ["--fly"]],
)
def test_a_wrong_call_ends_with_code_2(tinyfleet: Run, arguments: list[str]) -> None:
    failed = tinyfleet(*arguments)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_boards_lists_every_board_as_json(tinyfleet: Run) -> None:
    listed = json.loads(tinyfleet("boards", "--json").stdout)
    assert [board["name"] for board in listed] == boards.list_boards()
    for board in listed:
        assert 0 < board["sram_limit_bytes"] <= board["sram_bytes"]


def test_boards_as_a_table_names_every_board(tinyfleet: Run) -> None:
    shown = tinyfleet("boards").stdout
    assert all(name in shown for name in boards.list_boards())


def test_machines_lists_what_each_can_and_which_boards_it_can_be(tinyfleet: Run) -> None:
    listed = {one["name"]: one for one in json.loads(tinyfleet("machines", "--json").stdout)}
    assert listed.keys() == MACHINES.keys()
    assert listed["host"]["boards"] == boards.list_boards()
    assert "mps2-an505" in listed["qemu"]["boards"]
    assert "stm32f407" not in listed["qemu"]["boards"]
    assert "line-speed ring" in listed["unicorn"]["capabilities"]
    shown = tinyfleet("machines").stdout
    assert all(one.value in shown for one in Capability)
    assert all(name in shown for name in [*MACHINES, *boards.list_boards()])


def test_doctor_finds_what_runs_these_tests(tinyfleet: Run) -> None:
    said = json.loads(tinyfleet("doctor", "--json").stdout)
    found = {finding["name"]: finding for finding in said["findings"]}
    assert found["numpy"]["found"]
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))


def test_doctor_says_how_to_get_what_is_missing(
    tinyfleet: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.cli._doctor._search_path", lambda: "")
    finding = check_tool(next(tool for tool in TOOLS if tool.command == "mosquitto"))
    assert not finding.found
    assert finding.remedy == "apt-get install mosquitto"


def test_doctor_ends_with_code_1_when_something_needed_is_missing(
    tinyfleet: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, fleet.cli._doctor as d; d._search_path = lambda: '';"
        "from fleet.cli import main; main(['doctor'])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.returncode == 1
    assert "MISSING mosquitto" in said.stdout


def test_doctor_tells_a_package_that_is_too_old_from_one_that_fits() -> None:
    missing, old, fits = (
        check_package(Requirement(one)) for one in ("no-such-package>=1", "numpy>=1000", "numpy>=1")
    )
    assert not missing.found
    assert missing.needed
    assert not old.found
    assert old.remedy == "pip install 'numpy>=1000'"
    assert fits.found


@pytest.mark.parametrize(
    ("version", "specifier", "answer"),
    [
        ("1.41.0", ">=1.41,<1.42", True),
        ("1.42.0", ">=1.41,<1.42", False),
        ("0.9.10", "==0.9.1", False),
        ("10.0", ">=9", True),
        ("2.0", "", True),
        # Our own comparison took these for what they aren't.
        ("1.9.0", "~=2.0", False),
        ("2.1", "!=2.1", False),
        ("2.0rc1", ">=2.0", False),
    ],
)
def test_versions_are_compared_as_packages_are(
    version: str, specifier: str, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    assert check_package(Requirement(f"numpy{specifier}")).found is answer


def test_version_is_that_of_the_package(tinyfleet: Run) -> None:
    assert tinyfleet("--version").stdout == f"tinyfleet {metadata.version('tinyfleet')}\n"


@pytest.mark.parametrize(
    ("arguments", "module", "role"),
    [
        (["compile", "m.onnx", "--board", "stm32f407"], "onnx", "compiler"),
        (["gateway", "run", "--config", "gateway.toml"], "mqtt5", "gateway"),
        (["serve", "--config", "service.toml"], "fastapi", "service"),
        (["experiment", "run", "e.yaml", "--out", "o"], "unicorn", "simulator"),
        (["plan", "m.onnx", "--board", "stm32f746", "--data", "d.npz"], "unicorn", "simulator"),
        (["demo"], "sklearn", "demo"),
    ],
)
def test_a_command_without_its_packages_says_which_role_brings_them(
    tmp_path: Path, arguments: list[str], module: str, role: str
) -> None:
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from fleet.cli import main; main({arguments!r})"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert said.returncode == 1
    assert said.stderr.splitlines() == [
        f"error: `tinyfleet {arguments[0]}` needs the Python module {module!r}, which this "
        f"installation hasn't: pip install 'tinyfleet[{role}]'"
    ]


def test_who_asks_for_counts_in_emulation_gets_the_role_that_emulates() -> None:
    assert _roles.remedy("explain", "unicorn").endswith("pip install 'tinyfleet[simulator]'")
    assert _roles.remedy("explain", "matplotlib").endswith("pip install 'tinyfleet[compiler]'")


def test_a_role_has_what_the_roles_have_that_it_is_made_of() -> None:
    def names(role: str) -> set[str]:
        return {one.name for one in _roles.requirements(role)}

    assert all(names(role) for role in _roles.ROLES)
    assert {"flwr", "mqtt5"} <= names("gateway")
    assert not names("gateway") & names("")
    assert names("compiler") | names("gateway") | names("service") <= names("demo")
    assert "onnx" not in names("gateway") | names("service") | names("")


def test_the_page_on_roles_has_each_command_where_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "install.md").read_text("utf-8")
    told = {
        command.split()[0]: role
        for role, commands in re.findall(r"^\| `tinyfleet\[(\w+)\]` \|.*\|(.*)\|$", page, re.M)
        for command in re.findall(r"`(.*?)`", commands)
    }
    assert told.keys() <= typer.main.get_group(app).commands.keys()
    # `devices` needs more than every installation has only for an image.
    assert told == {**_roles._ROLE_OF_COMMAND, "devices": "simulator"}


def test_our_exceptions_are_answers_and_others_are_defects() -> None:
    assert is_expected(CodingError("too short"))
    assert is_expected(CommandError("no"))
    assert is_expected(FileNotFoundError(2, "No such file or directory", "model.onnx"))
    assert not is_expected(ValueError("a defect"))
    assert not is_expected(AssertionError())


def test_a_missing_file_is_named() -> None:
    error = FileNotFoundError(2, "No such file or directory", "model.onnx")
    assert message_of(error) == "model.onnx: No such file or directory"
