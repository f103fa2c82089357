"""docs/howto/write-a-campaign.md says what a campaign's file can have, and what gates can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from fleet.aggregation.rules import (
    BucketMedian,
    FedAvg,
    ServerAdam,
    ServerMomentum,
    ServerYogi,
    SetMedian,
)
from fleet.campaign import CampaignConfig
from fleet.campaign.config import Asynchronous, Retry, Schedule, Stage, TaskPace, Window
from fleet.campaign.files import read_campaign
from fleet.campaign.gates import (
    FailureGate,
    Outcome,
    ScoreGate,
    judge_failures,
    smallest_detectable_drop,
)
from fleet.campaign.masking import Masking
from fleet.campaign.privacy import AdaptiveClip, Privacy

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "howto" / "write-a-campaign.md").read_text("utf-8")
IN_CODE = frozenset(re.findall(r"[a-z]\w*", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))
PRIVATE_PAGE = (ROOT / "docs" / "howto" / "private-campaign.md").read_text("utf-8")
MODELS = [
    *(CampaignConfig, Stage, ScoreGate, FailureGate, Window, Retry, Schedule, TaskPace),
    *(Asynchronous, FedAvg, ServerMomentum, ServerAdam, ServerYogi, BucketMedian, SetMedian),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.__name__)
def test_no_field_is_missing_in_the_page(model: type[BaseModel]) -> None:
    assert set(model.model_fields) - IN_CODE == set()


@pytest.mark.parametrize("model", [Masking, Privacy, AdaptiveClip], ids=lambda one: one.__name__)
def test_no_field_of_privacy_is_missing_in_its_page(model: type[BaseModel]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ?([^|]*)\|", PRIVATE_PAGE, re.MULTILINE))
    assert set(model.model_fields) - rows.keys() == set()
    for name, field in model.model_fields.items():
        if rows[name].strip() and field.default is not None:
            assert yaml.safe_load(rows[name].strip().strip("`")) == field.default, name
    for block in re.findall(r"```yaml\n(.*?)```", PRIVATE_PAGE, re.DOTALL):
        CampaignConfig.model_validate({"name": "one", **yaml.safe_load(block)})


def test_rows_of_tables_are_fields_with_their_defaults() -> None:
    known = {name: field.default for name, field in CampaignConfig.model_fields.items()}
    checked = 0
    for names, default in re.findall(r"^\| (`[^|]+`) \| ([^|]*) \|", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            shown = default.strip("` ")
            if name in known and re.fullmatch(r"[\d.]+|true|false|adapt|samples|rice", shown):
                assert yaml.safe_load(shown) == known[name], name
                checked += 1
    assert checked > 15


def test_the_drops_that_gates_notice_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) points \|", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for devices, points in rows:
        drop = smallest_detectable_drop(ScoreGate(), [15] * int(devices))
        assert f"{100 * drop:.1f}" == points


def test_so_many_devices_pass_a_failure_gate_as_the_page_says() -> None:
    assert "at most 13.9 % fail" in PAGE
    assert "it needs 29 devices" in PAGE
    assert "and 13.9 %" in judge_failures(FailureGate(), 20, {}).reason
    assert judge_failures(FailureGate(), 28, {}).outcome is Outcome.TOO_LITTLE_EVIDENCE
    assert judge_failures(FailureGate(), 29, {}).outcome is Outcome.PASS


def test_what_stands_in_yaml_blocks_is_a_campaigns() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        CampaignConfig.model_validate({"name": "one", **yaml.safe_load(block)})


CAMPAIGNS = sorted((ROOT / "examples" / "digits").glob("*.yaml"))


@pytest.mark.parametrize("path", CAMPAIGNS, ids=lambda p: p.name)
def test_the_campaigns_of_the_examples_are_good(path: Path) -> None:
    assert read_campaign(path).model == "digits"
