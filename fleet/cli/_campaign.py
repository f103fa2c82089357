"""`tinyfleet campaign`: what can be said of a campaign's file by itself."""

from __future__ import annotations

from pathlib import Path

from fleet.campaign.config import CampaignConfig
from fleet.campaign.files import read_campaign
from fleet.campaign.planning import RoundKind, schedule
from fleet.cli._output import console, print_json, table


def validate(path: Path, *, as_json: bool) -> None:
    """Check a file, and show the rounds that it asks for."""
    config = read_campaign(path)
    rounds = [
        (one.number, one.kind, config.stages[one.stage].name, config.parameters(one.training_round))
        for one in schedule(config)
    ]
    if as_json:
        print_json(
            {
                "campaign": config.model_dump(mode="json"),
                "rounds": [
                    {
                        "round": number,
                        "kind": kind.value,
                        "stage": stage,
                        "learning_rate": parameters.learning_rate,
                    }
                    for number, kind, stage, parameters in rounds
                ],
            }
        )
        return
    rows = [
        [
            str(number),
            stage,
            kind.value,
            f"{parameters.learning_rate:g}" if kind is RoundKind.TRAIN else "",
        ]
        for number, kind, stage, parameters in rounds
    ]
    console().print(
        table(f"Rounds of {config.name}", ["round", "stage", "kind", "learning rate"], rows)
    )
    console().print(f"For {config.target or 'every device'}.", soft_wrap=True)


def print_schema() -> None:
    """The JSON Schema of a campaign's file, for editors."""
    print_json(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **CampaignConfig.model_json_schema(),
        }
    )
