from __future__ import annotations

import json
import subprocess
import sys

import pytest

from codegen.firmware import boards
from fleet.cli._doctor import TOOLS, can_compile, check_packages, check_tool
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
    missing, old, fits, optional = check_packages(
        ["no-such-package>=1", "numpy>=1000", "numpy>=1", 'no-such-package; extra == "dev"']
    )
    assert not missing.found
    assert missing.needed
    assert not old.found
    assert old.remedy == "pip install 'numpy>=1000'"
    assert fits.found
    assert not optional.needed


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
    (finding,) = check_packages([f"numpy{specifier}"])
    assert finding.found is answer


def test_without_both_compilers_no_firmware_can_be_built() -> None:
    assert not can_compile([])


def test_our_exceptions_are_answers_and_others_are_defects() -> None:
    assert is_expected(CodingError("too short"))
    assert is_expected(CommandError("no"))
    assert is_expected(FileNotFoundError(2, "No such file or directory", "model.onnx"))
    assert not is_expected(ValueError("a defect"))
    assert not is_expected(AssertionError())


def test_a_missing_file_is_named() -> None:
    error = FileNotFoundError(2, "No such file or directory", "model.onnx")
    assert message_of(error) == "model.onnx: No such file or directory"
