"""`tinyfleet campaign`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fleet.cli.conftest import Run


def test_a_good_file_shows_its_rounds(tinyfleet: Run, tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text("name: digits\nrounds: 3\nschedule: {name: cosine}\nlearning_rate: 0.02\n")
    said = json.loads(tinyfleet("campaign", "validate", str(path), "--json").stdout)
    assert [one["kind"] for one in said["rounds"]] == ["score-first", *["train"] * 3, "release"]
    assert said["rounds"][3]["learning_rate"] == 0.002
    assert said["campaign"]["name"] == "digits"
    shown = tinyfleet("campaign", "validate", str(path))
    assert "every device" in shown.stdout


def test_a_bad_file_names_all_that_is_wrong_and_ends_with_1(tinyfleet: Run, tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text("name: digits\nrounds: 0\nepoch: 3\n")
    failed = tinyfleet("campaign", "validate", str(path))
    assert failed.returncode == 1
    assert "rounds:" in failed.stderr
    assert "epoch:" in failed.stderr


def test_the_schema_has_every_field_of_a_campaign(tinyfleet: Run) -> None:
    schema = json.loads(tinyfleet("campaign", "schema").stdout)
    assert {"name", "target", "rounds", "aggregation", "schedule"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False
