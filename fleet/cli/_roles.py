"""What an installation is for: roles are extras of the package, and bring what their commands need.

`docs/install.md` says which role a machine has.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

PACKAGE = "tinyfleet"
ROLES = ("gateway", "unmasker", "service", "compiler", "simulator", "demo")
_ROLE_OF_COMMAND = {
    "backup": "service",
    "boards": "compiler",
    "compile": "compiler",
    "demo": "demo",
    "explain": "compiler",
    "experiment": "simulator",
    "gateway": "gateway",
    "init": "service",
    "machines": "simulator",
    "measure": "simulator",
    "models": "compiler",
    "plan": "simulator",
    "restore": "service",
    "serve": "service",
    "simulate": "simulator",
    "unmasker": "unmasker",
    "up": "service",
}
"""Of the others none needs more than every installation has, but for `devices image`."""


def requirements(role: str = "") -> list[Requirement]:
    """What the role needs besides what all do; without a role, that.

    Empty where the package isn't installed, but lies on the path.
    """
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for wanted in map(Requirement, lines):
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if always == bool(role):
            continue
        if role and wanted.marker and not wanted.marker.evaluate({"extra": role}):
            continue
        if wanted.name == PACKAGE:
            found += [one for other in sorted(wanted.extras) for one in requirements(other)]
        else:
            found.append(wanted)
    return found


def is_installed(wanted: Requirement) -> bool:
    """Whether the package is there, in a version that fits."""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(version, prereleases=True)


def has(role: str) -> bool:
    """Whether all of the role's packages are there."""
    return all(map(is_installed, requirements(role)))


def install(role: str) -> str:
    """The command that brings a role."""
    return f"pip install '{PACKAGE}[{role}]'"


def remedy(command: str, module: str) -> str:
    """What to do when a command doesn't find a module."""
    role = _ROLE_OF_COMMAND.get(command, "simulator")
    if module == "unicorn":
        role = "simulator"  # what some commands of other roles do only where asked: `explain`
    return (
        f"`{PACKAGE} {command}` needs the Python module {module!r}, which this installation "
        f"hasn't: {install(role)}"
    )
