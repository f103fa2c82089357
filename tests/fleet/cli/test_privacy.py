"""`tinyfleet privacy`, over a service in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.privacy import epsilon
from tests.fleet.cli.test_service_commands import Command, facts, site, tinyfleet
from tests.fleet.service.conftest import Site, private_campaign
from tests.fleet.service.test_privacy import RHO, spend

__all__ = ["site", "tinyfleet"]


def written(folder: Path, **privacy: Any) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(private_campaign(**privacy).as_file()))
    return path


def test_what_was_spent_is_shown_with_what_it_doesnt_cover(site: Site, tinyfleet: Command) -> None:
    of = spend(site, ["d0", "d1"], 2, budget_epsilon=3.0)
    code, out, _ = tinyfleet("privacy", "show", "--campaign", "test", "--limit", "1")
    assert code == 0
    assert "d0" in out
    spent = epsilon(2 * RHO, 1e-3)
    assert f"{spent:.2f}" in out
    assert f"{3.0 - spent:.2f}" in out, "what is left of it"
    assert "--after d0" in out
    assert "Not covered by ε: scores" in out
    told = facts(tinyfleet("privacy", "show", "d1", "--json"))
    assert [one["device"] for one in told["devices"]] == ["d1"]
    assert told["devices"][0]["campaigns"][0]["campaign"] == of


def test_a_plan_is_shown_for_each_observer(tinyfleet: Command, tmp_path: Path) -> None:
    path = written(tmp_path, budget_epsilon=1.8)
    code, out, _ = tinyfleet("privacy", "plan", path)
    assert code == 0
    whole = f"{epsilon(2 * RHO, 1e-3):.2f}"
    for wanted in ("coordinator", "public", whole, "Budget ε 1.8: 1 rounds", "Mind:", "scores"):
        assert wanted in out
    told = facts(tinyfleet("privacy", "plan", path, "--json"))
    assert told["virtual"] is None
    assert told["plan"]["rounds"] == 2


def test_a_file_without_privacy_is_named(tinyfleet: Command, tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text("name: test\n")
    code, _, err = tinyfleet("privacy", "plan", path)
    assert code == 1
    assert "plain.yaml has no privacy" in err


def test_a_virtual_run_is_a_sweep_without_and_with_the_noise(
    tinyfleet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        series = [
            {
                "strategy": "fedavg",
                "seeds": [1, 2],
                "last": [{"accuracy": {"mean": mean, "worst_tenth": mean / 2}}] * 2,
            }
            for mean in (0.8, 0.6)
        ]
        return subprocess.CompletedProcess(command, 0, json.dumps({"series": series}))

    monkeypatch.setattr(subprocess, "run", run)
    path = written(tmp_path)
    told = facts(tinyfleet("privacy", "plan", path, "--virtual", "some.yaml", "--json"))
    assert told["plan"] is None, "no service is asked where none is named"
    assert told["virtual"] == [
        {
            "strategy": "fedavg",
            "seeds": 2,
            "without_mean": 0.8,
            "without_worst_tenth": 0.4,
            "with_noise_mean": 0.6,
            "with_noise_worst_tenth": 0.3,
        }
    ]
    (command,) = ran
    assert command[:6] == [
        *(sys.executable, "-m", "fleet.cli"),
        *("experiment", "sweep", "some.yaml"),
    ]
    varied = {
        name: yaml.safe_load(f"[{values}]")
        for name, _, values in (
            command[at + 1].partition("=") for at, one in enumerate(command) if one == "--vary"
        )
    }
    assert varied["defaults.coding"] == ["masked"]
    without, noisy = varied["defaults.privacy"]
    assert without is None
    assert noisy["noise_multiplier"] == 2.0
    assert noisy["budget_epsilon"] is None, "virtual devices have spent nothing"
    out = tinyfleet("privacy", "plan", path, "--virtual", "some.yaml")[1]
    assert "80.0" in out
    assert "60.0" in out
