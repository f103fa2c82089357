"""Campaign files: what operators write, and every way to write it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.campaign import CampaignConfig
from fleet.campaign.files import CampaignTextError, read_campaign, read_text
from fleet.errors import CampaignError

WHOLE = """
name: digits
target: board == "stm32f746" && battery_percent >= 30
rounds: 4
epochs: 2
schedule: {name: cosine, last_share: 0.2}
aggregation:
  rule: server-momentum
  momentum: 0.5
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "campaign.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_says_what_a_configuration_says(tmp_path: Path) -> None:
    config = read_campaign(write(tmp_path, WHOLE))
    assert config.rounds == 4
    assert config.schedule.last_share == 0.2
    assert CampaignConfig.parse(config.model_dump_json()) == config
    assert read_campaign(write(tmp_path, config.model_dump_json())) == config


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a b\nrounds: 0\ntarget: bord == 1\nround: 3\n")
    with pytest.raises(CampaignError) as caught:
        read_campaign(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path} is no campaign:"
    named = [line.strip().partition(":")[0] for line in lines]
    assert named == ["name", "rounds", "target", "round"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: a\nname: b\n", "line 2, column 1: 'name' stands there twice"),
        ("name: x\nschedule: {name: cosine, name: constant}\n", "stands there twice"),
        ("name: [a\n", "is no YAML, line"),
        ("? [a, b]\n: 1\n", "a key has to be a name|is no YAML"),
        ("", "has no fields"),
        ("- name\n", "has no fields"),
        ("name: !!python/object/apply:os.system ['true']\n", "is no YAML"),
        ("&a [*a]\n", "has no fields|is no YAML"),
        (b"\xff\xfe\x00", "isn't UTF-8|is no YAML"),
        ("name: \x00", "is no YAML"),
        ("x: 2020-13-45\n", "is no YAML|is no campaign"),
        ("[" * 5000, "is no YAML"),
        (b"# " + b"x" * (1 << 20), "a campaign has 1048576 at most"),
    ],
)
def test_what_is_no_campaign_says_why(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(CampaignError, match=why):
        read_campaign(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match=r"none\.yaml can't be read"):
        read_campaign(tmp_path / "none.yaml")


def mistakes(text: str) -> list[tuple[str, int | None]]:
    with pytest.raises(CampaignTextError) as caught:
        read_text(text, "it")
    return [(one.field, one.line) for one in caught.value.mistakes]


def test_a_mistake_knows_the_field_and_the_line_where_it_stands() -> None:
    text = """# a comment
name: digits
rounds: 0
stages:
  - name: canary
    devices: 3
    gates:
      - gate: score
        most_drop: 2
      - {gate: failures,
         most: 0.1, many: 1}
  - name: all
    share: 1.0
    devices: 4
aggregation: {rule: fedavg, learning_rat: 1}
"""
    assert mistakes(text) == [
        ("stages.0.gates.0.most_drop", 9),
        ("stages.0.gates.1.many", 11),
        ("stages.1", 12),
        ("rounds", 3),
        ("aggregation.learning_rat", 15),
    ]


def test_what_is_not_there_has_no_line_and_what_is_no_yaml_has_one() -> None:
    assert mistakes("rounds: 3\n") == [("name", None)]
    assert mistakes("name: x\n\nrounds: [1\n") == [("", 4)]
    assert mistakes("name: a\nname: b\n") == [("", 2)]
    assert mistakes("- a\n") == [("", None)]
    assert mistakes("name: x\nschedule:\n  name: sine\n") == [("schedule.name", 3)]
    assert mistakes("name: x\nwindows:\n  - start: '22:00'\n") == [("windows.0.end", 3)]
