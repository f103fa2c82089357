"""A few devices that learn digits with a small plan, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet.campaign import CampaignConfig
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.fleet import VirtualFleet
from simulator.experiments.setting import build_firmware
from simulator.virtual.pool import DevicePool
from simulator.virtual.population import Firmware, Population

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
CAMPAIGN = "0123456789abcdef"


def experiment(devices: int = 6, **world: Any) -> ExperimentConfig:
    """With one strategy; ``world`` replaces whole sections."""
    sections: dict[str, Any] = {
        "population": {"devices": devices, "boards": {"stm32f407": 1.0}},
        "data": {"dataset": {"name": "digits"}, "samples_per_device": 12},
        "links": {"good": {"latency_seconds": [0.02, 0.2]}},
        **world,
    }
    return ExperimentConfig.model_validate(
        {
            "name": "small",
            "model": {
                "onnx": DIGITS / "digits.onnx",
                "calibration": DIGITS / "calibration.npz",
                "plans": [f"{DIGITS / 'plans.json'}#small"],
            },
            "world": sections,
            "strategies": {"fedavg": {"rounds": 2, "learning_rate": 0.02}},
        }
    )


def firmware(folder: Path) -> dict[str, Firmware]:
    return build_firmware(experiment(), Path(), folder, lambda *_: None)


def population(made: dict[str, Firmware], devices: int = 6, **world: Any) -> Population:
    return Population(experiment(devices, **world).world, 1, Path(), made)


def campaign(rounds: int = 2, **fields: Any) -> CampaignConfig:
    """Every device takes part, and nothing is scored or released."""
    return CampaignConfig.model_validate(
        {
            "name": "small",
            "seed": 1,
            "rounds": rounds,
            "learning_rate": 0.02,
            "score_first": False,
            "last_round": "none",
            **fields,
        }
    )


def run(
    of: Population, pool: DevicePool, folder: Path, config: CampaignConfig | None = None
) -> VirtualFleet:
    """A fleet that has run a campaign to its end; the caller closes it and the pool."""
    fleet = VirtualFleet(of, pool, folder)
    (bundle,) = [one.bundle for one in of.firmware.values()]
    text = (bundle / "manifest.json").read_text()
    weights = (bundle / "weights.bin").read_bytes()
    used = config or campaign(min_devices=len(of.numbers))
    fleet.run_campaign(used, {"b": text}, weights, CAMPAIGN)
    return fleet
