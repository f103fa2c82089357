"""`tinyfleet doctor`: what is installed, what is missing, how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

from packaging.requirements import Requirement

from fleet.cli import _roles
from fleet.cli._output import console, print_json
from fleet.protocol import delta_library


@dataclass(frozen=True)
class Tool:
    """A program outside of Python, what it is for and how to get it.

    `needed_by`: role that can't do without it.
    `versioned`: Debian may have it under a name with its version only, such as ``clang-14``.
    `variable`: of the environment, which may name the program.
    """

    command: str
    purpose: str
    remedy: str
    needed_by: str = ""
    version_flag: str = "--version"
    versioned: bool = False
    variable: str = ""


TOOLS = (
    Tool("mosquitto", "MQTT broker of a site", "apt-get install mosquitto", "demo", "-h"),
    Tool("mosquitto_passwd", "broker accounts", "apt-get install mosquitto", "demo", ""),
    Tool("arm-none-eabi-gcc", "firmware compiler", "apt-get install gcc-arm-none-eabi"),
    Tool("gcc", "host library, tests", "apt-get install gcc"),
    Tool("clang", "fuzzing, sanitizers", "apt-get install clang", versioned=True),
    Tool("clang-format", "make check", "apt-get install clang-format"),
    Tool("cppcheck", "make check", "apt-get install cppcheck"),
    Tool(
        "qemu-system-arm",
        "Arm's own boards (docs/howto/add-a-board.md)",
        "apt-get install qemu-system-arm",
    ),
    Tool(
        "renode",
        "whole boards (docs/howto/renode.md)",
        "get Renode 1.16 from renode.io; RENODE names its program",
        variable="RENODE",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    found: bool
    needed: bool
    version: str
    purpose: str
    remedy: str


def _search_path() -> str:
    """PATH with the folders for system programs that users often lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _version_of(path: str, flag: str) -> str:
    """First version number in what the program says of itself; empty when it says none."""
    if not flag:
        return ""
    try:
        said = subprocess.run([path, flag], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+\.\d+(?:\.\d+)?", said.stdout + said.stderr)
    return match.group() if match else ""


def check_tool(tool: Tool) -> Finding:
    """Look for one program."""
    names = [tool.command]
    if tool.versioned:
        names += [f"{tool.command}-{version}" for version in range(30, 11, -1)]
    if named := os.environ.get(tool.variable):
        names = [named]
    found = (shutil.which(name, path=_search_path()) for name in names)
    path = next((path for path in found if path), None)
    return Finding(
        name=tool.command,
        found=path is not None,
        needed=bool(tool.needed_by) and _roles.has(tool.needed_by),
        version=_version_of(path, tool.version_flag) if path else "",
        purpose=tool.purpose,
        remedy="" if path else tool.remedy,
    )


def check_python() -> Finding:
    """The interpreter that runs us."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    suits = sys.version_info >= (3, 11)
    return Finding(
        "python", suits, True, version, "everything", "" if suits else "install Python >= 3.11"
    )


def check_decoder() -> Finding:
    """The gateway's delta decoder in C, which it can do without."""
    try:
        delta_library.load(delta_library.LIBRARY)
        built = True
    except OSError:
        built = False
    return Finding(
        "delta decoder in C",
        built,
        False,
        "",
        "fast gateway; numpy does it without",
        "" if built else delta_library.REMEDY,
    )


def check_package(wanted: Requirement) -> Finding:
    """Look for one Python package that every installation needs."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    suits = _roles.is_installed(wanted)
    remedy = "" if suits else f"pip install '{wanted.name}{wanted.specifier}'"
    return Finding(wanted.name, suits, True, version, "Python package", remedy)


def check_role(role: str) -> Finding:
    """Look for all packages of a role."""
    missing = [one.name for one in _roles.requirements(role) if not _roles.is_installed(one)]
    purpose = f"role; without {', '.join(sorted(set(missing)))}" if missing else "role"
    remedy = _roles.install(role) if missing else ""
    return Finding(f"tinyfleet[{role}]", not missing, False, "", purpose, remedy)


def examine() -> list[Finding]:
    """All findings, in the order in which they are shown."""
    return [
        check_python(),
        *map(check_tool, TOOLS),
        check_decoder(),
        *map(check_package, _roles.requirements()),
        *map(check_role, _roles.ROLES),
    ]


def report(*, as_json: bool) -> bool:
    """Print the findings; False when something that is needed is missing."""
    findings = examine()
    healthy = all(finding.found or not finding.needed for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
        return healthy
    screen = console()
    for finding in findings:
        mark = "ok     " if finding.found else ("MISSING" if finding.needed else "absent ")
        line = f"{mark} {finding.name:<20} {finding.version:<12} {finding.purpose}"
        screen.print(
            line + (f"  → {finding.remedy}" if finding.remedy else ""), markup=False, soft_wrap=True
        )
    screen.print(
        "Everything that is needed is there."
        if healthy
        else "Something that is needed is missing; `scripts/setup` installs it where it may."
    )
    return healthy
