"""`tinyfleet experiment faults`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import typer

from fleet.cli._output import print_json
from fleet.demo.digits import example_folder
from simulator.errors import ExperimentError
from simulator.experiments.faults.run import Outcome
from simulator.experiments.faults.scene import firmware_for_search
from simulator.experiments.faults.schedule import MOST
from simulator.experiments.faults.search import Finding, search

EVERY = 500
"""Seeds between two lines that say how far it is."""


def faults(
    seeds: str, workers: int, events: int | None, only: str, build: Path, *, as_json: bool
) -> None:
    """Search, print what comes of it, and end with 1 where a seed failed.

    Raises: ExperimentError naming the option that says nothing.
    """
    most = MOST if events is None else events
    wanted, numbers = seeds_of(seeds), numbers_of(only)
    firmware = firmware_for_search(example_folder(), build)
    started, done, accepted, found = time.monotonic(), 0, 0, []
    for one in search(wanted, firmware, most, workers, numbers):
        outcome = one if isinstance(one, Outcome) else one.outcome
        done += 1
        accepted += outcome.accepted
        if isinstance(one, Finding):
            found.append(one)
        if not as_json:
            _print(one, is_alone=len(wanted) == 1)
        if done % EVERY == 0:
            sys.stderr.write(f"{done:,} of {len(wanted):,} seeds, {len(found)} failed\n")
    facts = {
        "seeds": done,
        "seconds": round(time.monotonic() - started, 1),
        "accepted": accepted,
        "failed": [one.to_json() for one in found],
    }
    if as_json:
        print_json(facts)
    else:
        sys.stdout.write(
            f"{done:,} seeds in {facts['seconds']:,} s, {accepted:,} deltas counted, "
            f"{len(found)} failed.\n"
        )
    if found:
        raise typer.Exit(1)


def _print(one: Outcome | Finding, *, is_alone: bool) -> None:
    if isinstance(one, Finding):
        told = [f"seed {one.outcome.seed}: {one.violation}"]
        told += [f"  {fault}" for fault in one.outcome.faults]
        told += [f"{len(one.outcome.faults)} of its {one.of} faults are enough. The story:"]
        told += [*one.outcome.story, "", one.command, ""]
        sys.stdout.write("\n".join(told) + "\n")
    elif is_alone:
        sys.stdout.write("\n".join(one.story) + "\n")


def seeds_of(text: str) -> range:
    """A..B as numbers. Raises: ExperimentError where it isn't that."""
    first, dots, last = text.partition("..")
    try:
        made = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        made = range(0)
    if not made or made[0] < 0:
        raise ExperimentError(f"--seeds {text}: give A..B, such as 1..1000")
    return made


def numbers_of(text: str) -> frozenset[int] | None:
    """Of faults; None: all. Raises: ExperimentError where it isn't that."""
    if not text:
        return None
    if text == "none":
        return frozenset()
    try:
        return frozenset(map(int, text.split(",")))
    except ValueError:
        raise ExperimentError(f"--only {text}: give numbers, such as 3,17, or none") from None
