"""`tinyfleet ca`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fleet.cli.conftest import Run


def test_an_authority_issues_what_it_is_asked_for(tinyfleet: Run, tmp_path: Path) -> None:
    folder = str(tmp_path / "ca")
    assert tinyfleet("ca", "init", folder, "--fleet", "barn").returncode == 0
    issued = tinyfleet("ca", "issue", folder, "broker", "--host", "broker.local", "--json")
    (one,) = json.loads(issued.stdout)["certificates"]
    assert Path(one["certificate"]).exists()
    assert Path(one["key"]).exists()
    listed = json.loads(tinyfleet("ca", "list", folder, "--json").stdout)
    assert listed == {"certificates": [one]}
    assert "broker" in tinyfleet("ca", "list", folder).stdout


def test_what_can_not_be_done_ends_with_one_line(tinyfleet: Run, tmp_path: Path) -> None:
    for command in (("list",), ("issue", "broker")):
        verb, *rest = command
        failed = tinyfleet("ca", verb, str(tmp_path / "none"), *rest)
        assert failed.returncode == 1
        assert "tinyfleet ca init" in failed.stderr
        assert failed.stderr.count("\n") == 1
