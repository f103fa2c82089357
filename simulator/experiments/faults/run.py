"""One seed: a fleet, its faults, and what came of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fleet.coordinator.creation import new_campaign
from fleet.store import ENDED_STATES
from simulator.experiments.faults.injection import Coordinator, Injection
from simulator.experiments.faults.scene import SITE, Scene
from simulator.experiments.faults.schedule import HORIZON_SECONDS, MOST, Fault, draw_faults
from simulator.experiments.faults.watch import Violation, Watch
from simulator.experiments.fleet import VirtualFleet
from simulator.experiments.window_clock import TooManyEvents
from simulator.virtual.pool import LocalPool
from simulator.virtual.population import Firmware

LONGEST_SECONDS = 4000.0
"""So much longer than the last fault nothing takes, whatever happened."""
MOST_EVENTS = 1_000_000
"""So many happen in no story that ends; virtual time may stand still."""
SETTLE_SECONDS = 45.0
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of a seed."""

    seed: int
    faults: tuple[Fault, ...]
    violation: Violation | None
    states: tuple[str, ...]
    """Of its campaigns, in the end."""
    accepted: int
    """Deltas that gateways have receipted."""
    story: tuple[str, ...]


def run_seed(
    seed: int,
    firmware: Firmware,
    most: int = MOST,
    only: Collection[int] | None = None,
    before: Callable[[VirtualFleet], None] = lambda fleet: None,
) -> Outcome:
    """Run a seed to its end, or until something that has to hold doesn't.

    Args:
        seed: all chance comes from it.
        firmware: of all devices.
        most: faults at most.
        only: the numbers of those that happen; all where left out.
        before: called with the fleet before anything happens.
    """
    work = Path(tempfile.mkdtemp(prefix="tinyfleet-"))
    try:
        return _run(Scene(seed, firmware), work, most, only, before)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def faults_of(scene: Scene, most: int, only: Collection[int] | None) -> list[Fault]:
    """Those that happen in a seed."""
    faults = draw_faults(scene.seed, scene.targets(), most)
    return [one for one in faults if only is None or one.number in only]


def _run(
    scene: Scene,
    work: Path,
    most: int,
    only: Collection[int] | None,
    before: Callable[[VirtualFleet], None],
) -> Outcome:
    faults = faults_of(scene, most, only)
    population = scene.population(faults)
    pool = LocalPool(population)
    with VirtualFleet(population, pool, work, scene.keys) as fleet:
        watch = Watch(fleet, pool, population, scene, SITE)
        coordinator = Coordinator(fleet, watch)

        def committed() -> None:
            watch.store_changed = True
            fleet.processes.step()

        fleet.store.on_commit = committed
        fleet.clock.most_events = MOST_EVENTS
        before(fleet)
        Injection(fleet, population, scene, coordinator, watch).plan(faults)
        try:
            _go(scene, fleet, coordinator, watch)
        finally:
            watch.close()
        states = [fleet.store.campaign(one).state for one in watch.drivers]
        return Outcome(
            scene.seed,
            tuple(faults),
            watch.violation,
            tuple(states),
            watch.counted,
            tuple(watch.story),
        )


def _go(scene: Scene, fleet: VirtualFleet, coordinator: Coordinator, watch: Watch) -> None:
    waiting = list(scene.campaigns)

    def ended() -> bool:
        return all(
            watch.record(one).state in ENDED_STATES
            and not any(driver.lives for driver in watch.drivers[one])
            for one in watch.drivers
        )

    end, settle = HORIZON_SECONDS + LONGEST_SECONDS, None
    while watch.violation is None and fleet.clock.monotonic() < end:
        now = fleet.clock.monotonic()
        if waiting and now >= waiting[0].begins_at and (not waiting[0].follows or ended()):
            one = waiting.pop(0)
            manifests = {"": scene.manifest}
            new_campaign(
                fleet.store, one.config, manifests, scene.weights, identifier=one.identifier
            )
            coordinator.start(one.identifier)
            watch.look()
        if waiting or now < HORIZON_SECONDS or not ended():
            settle = None
        elif settle is None:
            settle = now
        elif now > settle + SETTLE_SECONDS:
            break
        try:
            fleet.processes.advance(LOOK_SECONDS, lambda: watch.violation is not None)
        except TooManyEvents as error:
            watch.broken("every round ends", f"{error} events, and the story goes on")
            return
        except Exception as error:  # whoever let it out would end
            watch.broken("no defect", f"{type(error).__name__}: {error}")
            return
        watch.look()
        coordinator.look()
    if watch.violation is None:
        watch.look_at_end()
