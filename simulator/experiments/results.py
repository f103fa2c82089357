"""What came of an experiment: only what its seeds decide, so that it can be compared byte by byte.

A cell is one strategy with one seed. Wall times, host and commit are the run's, not the result's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from simulator.virtual.offline import Score
from simulator.virtual.pool import Figures


class Accuracy(NamedTuple):
    """Over devices, each of which counts alike."""

    devices: int
    mean: float
    median: float
    worst_tenth: float
    """Mean of the tenth of the devices that does worst, one device at least."""

    @classmethod
    def of(cls, scores: Iterable[Score]) -> Accuracy | None:
        """None where no device has samples."""
        shares = np.sort([one.correct / one.samples for one in scores if one.samples])
        if not len(shares):
            return None
        worst = shares[: max(1, len(shares) // 10)]
        return cls(
            len(shares), float(np.mean(shares)), float(np.median(shares)), float(np.mean(worst))
        )


@dataclass(frozen=True)
class VersionScores:
    """How a version of the weights does; on which device how is in the run's tables."""

    training_round: int
    """After so many of them; 0: what devices were made with."""
    seconds: float
    """When it was there, in the fleet's time."""
    accuracy: Accuracy | None
    """Of devices on their own held-out samples."""
    never_trained: Accuracy | None = None
    """Of devices that never train."""


@dataclass(frozen=True)
class RoundResult:
    """One round of a campaign."""

    number: int
    kind: str
    training_round: int
    begins_seconds: float
    ends_seconds: float
    asked: int
    accepted: int
    late: int
    declined: Mapping[str, int]
    coded_bytes: int
    """Of the deltas alone."""
    totals: Figures
    """Of all devices, from the beginning until the next round's, or the campaign's end."""


@dataclass(frozen=True)
class StrategyResult:
    """A cell."""

    state: str
    """``finished``, or how else it ended."""
    reason: str = ""
    rounds: tuple[RoundResult, ...] = ()
    versions: tuple[VersionScores, ...] = ()
    weights_sha256: str = ""
    """Of the last version."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else there is to tell."""
    has_fleet: bool = False
    """Whether time, bytes and energy passed; else it is a bound, as training in one place."""

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse."""
        rounds = tuple(
            RoundResult(**{**one, "totals": Figures(**one["totals"])}) for one in data["rounds"]
        )
        versions = tuple(
            VersionScores(
                one["training_round"],
                one["seconds"],
                *(Accuracy(*one[of]) if one[of] else None for of in ("accuracy", "never_trained")),
            )
            for one in data["versions"]
        )
        return cls(**{**data, "rounds": rounds, "versions": versions})


@dataclass(frozen=True)
class Cell:
    """A strategy with a seed, and what came of it."""

    strategy: str
    seed: int
    result: StrategyResult

    def curve(self) -> list[dict[str, Any]]:
        """Accuracy and what it has cost until then, by version."""
        ends = {one.training_round: one for one in self.result.rounds if one.kind == "train"}
        points = []
        for version in self.result.versions:
            ended = ends.get(version.training_round)
            if version.training_round > max(ends, default=version.training_round):
                ended = self.result.rounds[-1]  # what devices have made of the last version
            totals = ended.totals if ended else Figures()
            accuracy, never = version.accuracy, version.never_trained
            points.append(
                {
                    "training_round": version.training_round,
                    "seconds": version.seconds,
                    "accuracy": accuracy._asdict() if accuracy else None,
                    "never_trained": never._asdict() if never else None,
                    "bytes_up": totals.bytes_up,
                    "bytes_down": totals.bytes_down,
                    "milliwatt_hours": totals.milliwatt_hours,
                    "flash_erases": totals.flash_erases,
                    "most_flash_erases": totals.most_flash_erases,
                    "most_flash_wear": totals.most_flash_wear,
                }
            )
        return points

    def summary(self, target: float | None) -> dict[str, Any]:
        """What a reader looks at first; ``target`` is a mean accuracy of devices."""
        curve = self.curve()
        reached = [
            one
            for one in curve
            if target is not None and one["accuracy"] and one["accuracy"]["mean"] >= target
        ]
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "has_fleet": self.result.has_fleet,
            "state": self.result.state,
            "reason": self.result.reason,
            "weights_sha256": self.result.weights_sha256,
            "facts": dict(self.result.facts),
            "last": curve[-1] if curve else None,
            "reached": reached[0] if reached else None,
            "curve": curve,
        }


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all. Keys keep their order: that of boards and strategies has a meaning."""
    made = path.with_name(path.name + ".new")
    made.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    made.replace(path)
