"""What goes wrong in a fleet and when, as a list that follows from a seed.

Each fault has a number and draws of its own: without one of them the others are what they were, so
that a failing schedule can be made shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codegen.firmware.bundle import Bundle
from codegen.firmware.flash_layout import slot_header_bytes
from simulator.devices.flash_image import Identity, identity_region
from simulator.experiments.setting import FLEET
from simulator.world.draws import generator

HORIZON_SECONDS = 45.0
"""Nothing goes wrong after that; most of it does while the first rounds run."""
LEAST, MOST = 3, 24
"""Faults of a seed."""
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once."""

    number: int
    at: float
    """Seconds of the fleet's time."""
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """For a story."""
        values = ", ".join(f"{name} {value}" for name, value in self.values.items())
        return f"[{self.number}] {self.kind}: {values}"


@dataclass(frozen=True)
class Targets:
    """What there is to go wrong."""

    devices: int
    gateways: tuple[str, ...]
    campaigns: int
    bundle: Bundle
    pool: tuple[int, tuple[int, ...]]
    """Address of the pool, and how much of it each device may use."""
    has_unmasker: bool = False


Draw = Callable[[np.random.Generator, Targets], dict[str, Any]]


def _device(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {"device": int(random.integers(of.devices))}


def _seconds(random: np.random.Generator, most: float) -> float:
    """From an instant to ``most``, rather shorter than longer."""
    return round(most * float(random.random()) ** 3, 3)


def _brown_out(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    # A staging takes some 3,400 operations, a commit or a release one.
    operation = 1 + int(4000 ** random.random())
    return {**_device(random, of), "operation": operation, "seed": int(random.integers(2**31))}


def _flash_bit_flip(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    flash = of.bundle.manifest.flash
    weights = of.bundle.manifest.weights.bytes
    slot = slot_header_bytes(weights) + weights
    record = identity_region(Identity("device-0000000", FLEET, "virtual"))
    # Where something is; elsewhere nobody would notice.
    places = (
        ("identity", flash.identity.address, len(record)),
        ("journal", flash.journal.address, 64),
        ("slot A", flash.slot_a.address, slot),
        ("slot B", flash.slot_b.address, slot),
        ("head of slot A", flash.slot_a.address, 256),
        ("head of slot B", flash.slot_b.address, 256),
        ("samples", flash.samples.address, 512),
    )
    name, address, size = places[int(random.integers(len(places)))]
    place = {"address": address + int(random.integers(size)), "bit": int(random.integers(8))}
    return {**_device(random, of), "region": name, **place}


def _pool_bit_flip(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    device = int(random.integers(of.devices))
    address, sizes = of.pool
    place = {
        "address": address + int(random.integers(sizes[device])),
        "bit": int(random.integers(8)),
    }
    return {"device": device, **place}


def _out_of_reach(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {**_device(random, of), "seconds": _seconds(random, 150.0)}


def _gateway(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {"gateway": of.gateways[int(random.integers(len(of.gateways)))]}


def _gateway_killed(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {
        **_gateway(random, of),
        "deltas": (0, 0, 1, 1, 2, 3)[int(random.integers(6))],
        "steps": 1 + int(40 ** random.random()),
        "seconds": _seconds(random, 100.0),
    }


def _broker_killed(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {"seconds": _seconds(random, 100.0)}


def _campaign(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {"campaign": int(random.integers(of.campaigns))}


def _driver_killed(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    return {
        **_campaign(random, of),
        "steps": 1 + int(60 ** random.random()),
        "seconds": _seconds(random, 30.0),
    }


def _requests(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    how = ("lost", "answer lost", "twice", "late")[int(random.integers(4))]
    return {**_gateway(random, of), "how": how, "seconds": _seconds(random, 40.0)}


def _wall_clock(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    whose = ("all", *of.gateways)[int(random.integers(1 + len(of.gateways)))]
    back = -1.0 if random.random() < 0.5 else 1.0
    return {"whose": whose, "seconds": back * _seconds(random, 30 * _DAY_SECONDS)}


def _forged(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    whats = (
        *("garbage", "cut off", "another lease", "another plan", "another round"),
        *("beyond bounds", "within bounds", "all sent again", "retained"),
    )
    return {**_device(random, of), "what": whats[int(random.integers(len(whats)))]}


def _operator(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    wish = ("pause", "pause", "stop", "roll-back", "roll-back", "roll-back")[
        int(random.integers(6))
    ]
    seconds = {"seconds": _seconds(random, 30.0)} if wish == "pause" else {}
    return {**_campaign(random, of), "wish": wish, **seconds}


def _unmasker_killed(random: np.random.Generator, of: Targets) -> dict[str, Any]:
    """Before it has recorded a set, or between that and its answer; for so many requests."""
    return {
        "requests": int(random.integers(1, 5)),
        "has_recorded": bool(random.random() < 0.5),
    }


KINDS: Mapping[str, tuple[float, Draw]] = {
    "reset": (3.0, _device),
    "brown-out": (4.0, _brown_out),
    "flash bit flip": (1.0, _flash_bit_flip),
    "pool bit flip": (0.5, _pool_bit_flip),
    "out of reach": (4.0, _out_of_reach),
    "gateway killed": (6.0, _gateway_killed),
    "broker killed": (2.0, _broker_killed),
    "driver killed": (4.0, _driver_killed),
    "second driver": (1.0, _campaign),
    "requests": (4.0, _requests),
    "wall clock": (2.0, _wall_clock),
    "forged": (4.0, _forged),
    "operator": (2.5, _operator),
}
"""How often each is drawn beside the others, and what about it."""
OF_MASKED: Mapping[str, tuple[float, Draw]] = {"unmasker killed": (4.0, _unmasker_killed)}
"""The same where devices mask their deltas."""


def draw_faults(seed: int, of: Targets, most: int = MOST) -> list[Fault]:
    """All faults of a seed, in order of their numbers.

    A seed has some of the kinds only (swarm testing, Groce and others, ISSTA 2012): what hides
    behind the most frequent ones comes to light where those are left out.
    """
    random = generator(seed, "faults")
    count = int(random.integers(min(LEAST, most), most + 1))
    kinds = {**KINDS, **OF_MASKED} if of.has_unmasker else KINDS
    some = [name for name in kinds if random.random() < 0.6] or list(kinds)
    weights = np.array([kinds[name][0] for name in some])
    made = []
    for number in range(count):
        own = generator(seed, "fault", number)
        kind = some[int(own.choice(len(some), p=weights / weights.sum()))]
        # Early, while most is under way; an operator has second thoughts later as well.
        early = 1 if kind == "operator" else 2
        at = round(1.0 + (HORIZON_SECONDS - 1.0) * float(own.random()) ** early, 3)
        made.append(Fault(number, at, kind, kinds[kind][1](own, of)))
    return made
