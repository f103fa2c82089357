"""A small fleet and what it is for, as they follow from a seed; without what goes wrong."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codegen.firmware.bundle import MANIFEST, WEIGHTS, Bundle
from fleet.campaign import CampaignConfig
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.faults.schedule import Fault, Targets
from simulator.experiments.keys import VirtualKeys
from simulator.experiments.setting import FLEET, build_firmware
from simulator.machines.elf_image import load_elf
from simulator.virtual.events import BitFlip, BrownOut, Event, Reach, Reset
from simulator.virtual.population import Firmware, Population
from simulator.world.draws import generator
from simulator.world.world import WorldConfig

BOARD = "stm32f407"
PLANS = ("small", "middle")
SITE, GATEWAYS = "site", 2
RESERVED_SRAM_BYTES = 106_000
"""Of every other device: what is left is enough for the smaller plan only."""
MASKED_SEEDS = 7
"""Of so many seeds that follow each other one is masked; what others tell stays what it was."""
_SECOND = 1_000_000_000


def firmware_for_search(example: Path, build: Path) -> Firmware:
    """The firmware of all seeds: the example's, with two plans; ``build`` keeps it."""
    plans = [f"plans.json#{name}" for name in PLANS]
    config = ExperimentConfig.model_validate(
        {
            "name": "faults",
            "model": {
                "onnx": "digits.onnx",
                "calibration": "calibration.npz",
                "plans": plans,
            },
            "world": _world(1),
            "strategies": {"campaign": {"rounds": 1}},
        }
    )
    return build_firmware(config, example, build, lambda *_: None)[BOARD]


def _world(devices: int) -> dict[str, Any]:
    return {
        "population": {
            "devices": devices,
            "boards": {BOARD: 1.0},
            "sites": {SITE: {"gateways": GATEWAYS}},
            "reserved_sram_shares": {0: 0.5, RESERVED_SRAM_BYTES: 0.5},
            "stragglers": {"share": 0.3, "slower": [2.0, 40.0]},
        },
        "faults": {"clock_drift_ppm": [-5000.0, 5000.0]},
        "data": {"dataset": {"name": "digits"}, "samples_per_device": [6, 9]},
        "links": {
            "near": {"share": 0.6, "latency_seconds": [0.0, 0.1]},
            "far": {
                "share": 0.4,
                "latency_seconds": [0.1, 1.0],
                "loss": 0.02,
                "redelivered": 0.05,
                "held_back": 0.05,
                "dropped": 0.05,
            },
        },
    }


@dataclass
class FaultyPopulation(Population):
    """Devices to which more happens than their world says."""

    befalls: Mapping[int, Sequence[Event]] | None = None
    """By device; in order of time."""

    def events(self, number: int) -> Iterator[Event]:
        """See `Population`."""
        more = (self.befalls or {}).get(number, ())
        return heapq.merge(super().events(number), more, key=lambda event: event.at)


@dataclass(frozen=True)
class PlannedCampaign:
    """A campaign, and when it begins."""

    identifier: str
    config: CampaignConfig
    begins_at: float
    follows: bool
    """It waits for the end of the one before."""


class Scene:
    """What a seed is about."""

    def __init__(self, seed: int, firmware: Firmware) -> None:
        """Nothing is built yet."""
        self.seed = seed
        self.firmware = firmware
        random = generator(seed, "scene")
        self.devices = int(random.integers(4, 7))
        self.campaigns = [
            _campaign(seed, number) for number in range(1 + int(random.random() < 0.6))
        ]
        self._world = WorldConfig.model_validate(_world(self.devices))
        self.keys: VirtualKeys | None = None
        """Of a scene with a masked campaign: then all tasks are signed."""
        if any(one.config.masking for one in self.campaigns):
            population = self._population({})
            names = {one: population.world.device(one).name for one in population.numbers}
            self.keys = VirtualKeys.draw(seed, FLEET, names)

    @property
    def manifest(self) -> str:
        """manifest.json of the bundle."""
        return (self.firmware.bundle / MANIFEST).read_text(encoding="utf-8")

    @property
    def weights(self) -> bytes:
        """What devices are made with."""
        return (self.firmware.bundle / WEIGHTS).read_bytes()

    def population(self, faults: Sequence[Fault]) -> Population:
        """The devices, and those of the faults that befall them."""
        befalls: dict[int, list[Event]] = {}
        for fault in faults:
            for event in _events(fault):
                befalls.setdefault(fault.values["device"], []).append(event)
        for events in befalls.values():
            events.sort(key=lambda event: event.at)
        return self._population(befalls)

    def _population(self, befalls: Mapping[int, Sequence[Event]]) -> Population:
        return FaultyPopulation(
            self._world,
            self.seed,
            Path(),
            {BOARD: self.firmware},
            FLEET,
            provisioned=self.keys.provisioned if self.keys else None,
            befalls=befalls,
        )

    def targets(self) -> Targets:
        """What there is to go wrong."""
        population = self.population(())
        bundle: Bundle = population.bundle(BOARD)
        image = load_elf(bundle.firmware)
        start, end = image.address_of("__pool_start"), image.address_of("__pool_end")
        reserved = [population.world.device(one).reserved_sram_bytes for one in population.numbers]
        return Targets(
            self.devices,
            tuple(f"{SITE}-{number}" for number in range(1, GATEWAYS + 1)),
            len(self.campaigns),
            bundle,
            (start, tuple(end - start - one for one in reserved)),
            has_unmasker=self.keys is not None,
        )


def _campaign(seed: int, number: int) -> PlannedCampaign:
    random = generator(seed, "campaign", number)
    gates = [{"gate": "failures", "most": 0.5}] if random.random() < 0.25 else []
    last: dict[str, Any] = {"name": "all", "share": 1.0, "gates": gates}
    stages = [last]
    if random.random() < 0.3:
        stages = [{"name": "canary", "devices": 2, "gates": gates}, last]
    fields = {
        "name": f"campaign-{number}",
        "seed": int(random.integers(2**32)),
        "rounds": int(random.integers(1, 4)),
        "score_first": bool(random.random() < 0.3),
        "last_round": "none" if random.random() < 0.2 else "release",
        "deadline_seconds": 40,
        "gateway_grace_seconds": 90.0 if random.random() < 0.7 else 20.0,
        "wait_for_devices_seconds": 90.0,
        "check_in_seconds": 5 if random.random() < 0.2 else 0,
        "weighting": "uniform" if random.random() < 0.3 else "samples",
        "stages": stages,
    }
    if random.random() < 0.2:
        fields |= {"cohort_share": 0.6, "over_selection": 0.7}
    arrivals = generator(seed, "arrivals", number)
    if arrivals.random() < 0.35:
        fields |= _asynchronous(arrivals)
    if seed % MASKED_SEEDS == 4 and "asynchronous" not in fields:
        fields |= _masked(generator(seed, "masks", number))
    follows = bool(random.random() < 0.5)
    begins_at = 0.0 if number == 0 else float(random.uniform(0.0, 15.0))
    return PlannedCampaign(
        f"{number + 1:016x}", CampaignConfig.model_validate(fields), begins_at, follows
    )


def _asynchronous(random: np.random.Generator) -> dict[str, Any]:
    """Small buffers and many versions, so that deltas are stale, and too stale."""
    return {
        "rounds": int(random.integers(2, 7)),
        "over_selection": 0.0,
        "asynchronous": {
            "buffer": int(random.integers(1, 4)),
            "staleness_exponent": (0.0, 0.5, 1.0)[int(random.integers(3))],
            "most_stale": (0, 1, 2, 20)[int(random.integers(4))],
        },
    }


def _masked(random: np.random.Generator) -> dict[str, Any]:
    """Sets that are barely large enough, so that drop-outs leave some with too few."""
    return {
        "coding": "masked",
        "weighting": "uniform",
        "aggregation": {"rule": "fedavg"},
        "masking": {
            "least_devices": int(random.integers(2, 4)),
            "spare": 0.0,
            "patience_seconds": float(random.choice([0.0, 30.0])),
        },
    }


BEFALLS_DEVICES = frozenset(
    {"reset", "brown-out", "flash bit flip", "pool bit flip", "out of reach"}
)
"""Kinds of faults that devices have among their events."""


def _events(fault: Fault) -> list[Event]:
    at, values = round(fault.at * _SECOND), fault.values
    match fault.kind:
        case "reset":
            return [Event(at, Reset())]
        case "brown-out":
            return [Event(at, BrownOut(values["operation"], values["seed"]))]
        case "flash bit flip" | "pool bit flip":
            return [Event(at, BitFlip(values["address"], values["bit"]))]
        case "out of reach":
            back = at + round(values["seconds"] * _SECOND)
            return [Event(at, Reach(False)), Event(back, Reach(True))]
    return []
