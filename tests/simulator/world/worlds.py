"""Worlds of tests: a small one, and others by what they have different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.world.world import World, WorldConfig

BOARDS = {"stm32f746": 0.3, "stm32f407": 0.7}


def config(devices: int = 40, **sections: Any) -> WorldConfig:
    """A world of digits; ``sections`` are mappings, whose fields replace its own."""
    whole: dict[str, Any] = {
        "population": {"devices": devices, "boards": BOARDS},
        "data": {"dataset": "digits"},
    }
    for name, fields in sections.items():
        whole[name] = {**whole.get(name, {}), **fields}
    return WorldConfig.model_validate(whole)


def world(devices: int = 40, seed: int = 1, folder: Path = Path(), **sections: Any) -> World:
    """The same, with a seed."""
    return World(config(devices, **sections), seed, folder)
