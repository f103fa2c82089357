"""Experiments: fleets in virtual time, and what researchers ask of them.

Below the two seams of time and transport all is what runs live: gateways' logic and stores, round
machine, campaigns' driver, aggregation, and on devices the firmware's own C.

docs/howto/experiment.md shows how to use it from Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.experiments.api import Replay, compare, replay, run, sweep
    from simulator.experiments.comparison import Comparison, FinishedRun
    from simulator.experiments.config import ExperimentConfig
    from simulator.experiments.runner import Source

__all__ = [
    "Comparison",
    "ExperimentConfig",
    "FinishedRun",
    "Replay",
    "Source",
    "compare",
    "replay",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """What the package exports, imported when it is asked for: the command line starts quickly."""
    from importlib import import_module

    if name in __all__:
        for module in ("api", "config"):
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
