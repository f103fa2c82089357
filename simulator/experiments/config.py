"""What an experiment's file says (docs/howto/experiment.md)."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from simulator.errors import ExperimentError
from simulator.experiments.results import StrategyResult
from simulator.world.fields import problem
from simulator.world.world import WorldConfig

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
STRATEGIES = "tinyfleet.strategies"
"""The entry points that strategies are found by; each is a `Strategy`, by its ``kind``."""


class Section(BaseModel):
    """A part of the file: frozen, and nobody writes what it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSource(Section):
    """Where the firmware comes from. Paths begin where the file lies."""

    onnx: Path
    calibration: Path | None = None
    """NPZ of typical inputs; float models need it."""
    plans: tuple[str, ...] = ()
    """FILE or FILE#NAME of each update plan; a small, a middle and a full one where left out."""


class Evaluation(Section):
    """How versions of the weights are scored beside the fleet, which has no part in it."""

    every: Annotated[int, Field(ge=0)] = 1
    """After so many training rounds, and after the last; 0: never."""
    devices: Count | None = None
    """On the held-out samples of the first so many devices; of all where left out."""
    never_trained: bool = True
    """And on devices that never train, where the world has some."""


class Strategy(Section, ABC):
    """A way to learn. A subclass has a ``kind`` of its own and is an entry point."""

    kind: str

    @property
    def needs_keys(self) -> bool:
        """Whether its devices sign, mask, and believe signed tasks only."""
        return False

    @abstractmethod
    def run(self, setting: Any, seed: int) -> StrategyResult:
        """Learn in a `simulator.experiments.setting.Setting`."""


@cache
def strategy_kinds() -> Mapping[str, type[Strategy]]:
    """All that are installed, by name."""
    return {one.name: one.load() for one in sorted(entry_points(group=STRATEGIES))}


def _strategy(own: Any) -> Any:
    if isinstance(own, Strategy):
        return own
    if not isinstance(own, dict):
        raise ValueError("a strategy is its fields with values")
    kind = own.get("kind", "campaign")
    if not isinstance(kind, str) or kind not in strategy_kinds():
        close = difflib.get_close_matches(str(kind), strategy_kinds(), 1)
        remedy = (
            f"did you mean {close[0]}?" if close else f"there are {', '.join(strategy_kinds())}"
        )
        raise ValueError(f"kind: there is no strategy {kind}; {remedy}")
    model = strategy_kinds()[kind]
    try:
        return model.model_validate({key: value for key, value in own.items() if key != "kind"})
    except ValidationError as error:
        raise ValueError(problem(error, model)) from None


AnyStrategy = Annotated[SerializeAsAny[Strategy], BeforeValidator(_strategy)]
"""By its ``kind``; a campaign where that is left out."""


class ExperimentConfig(Section):
    """One world, some ways to learn in it."""

    name: Name
    description: Annotated[str, Field(max_length=2000)] = ""
    model: ModelSource
    world: WorldConfig
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1,)
    """Each strategy runs with each of them."""
    defaults: Mapping[str, Any] = {}
    """What all strategies have in common."""
    strategies: Annotated[Mapping[Name, AnyStrategy], Field(min_length=1)]
    evaluate: Evaluation = Evaluation()
    target_accuracy: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Time, bytes and energy until the mean accuracy of devices is that high are told."""

    @model_validator(mode="before")
    @classmethod
    def _strategies_have_the_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("strategies"), dict):
            return values
        defaults = values.get("defaults") or {}
        if not isinstance(defaults, Mapping):
            raise ValueError("defaults: they are fields with values")
        made = {
            name: {**defaults, **(own or {})} if isinstance(own or {}, dict) else own
            for name, own in values["strategies"].items()
        }
        return {**values, "strategies": made}

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = [seed for seed in seeds if seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is there twice; each seed once")
        return seeds

    def with_seeds(self, seeds: Sequence[int]) -> Self:
        """The same experiment with other seeds. Raises: ExperimentError."""
        return self.of({**self.model_dump(mode="json"), "seeds": list(seeds)})

    @classmethod
    def of(cls, values: Any, source: str = "experiment") -> Self:
        """The experiment of a file's content. Raises: ExperimentError naming the field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ExperimentError(f"{source}: {problem(error, cls)}") from None

    @classmethod
    def parse(cls, text: str, source: str = "experiment") -> Self:
        """The experiment in a YAML text. Raises: ExperimentError naming the field."""
        return cls.of(yaml_of(text, source), source)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The experiment in a file. Raises: ExperimentError naming the field."""
        return cls.parse(text_of(path), str(path))


def text_of(path: Path) -> str:
    """What a file says. Raises: ExperimentError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: can't be read ({error})") from None


def yaml_of(text: str, source: str) -> Any:
    """What a YAML text says. Raises: ExperimentError."""
    try:
        return yaml.safe_load(text)
    # Also what a number or a date can't be, and what is nested too deeply.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ExperimentError(f"{source}: not YAML ({error})") from None
