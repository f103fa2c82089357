"""A round as the gateway sees it: what was asked for, and where it stands."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import cbor2
import numpy as np
from numpy.typing import NDArray

from fleet.gateway.folds import FOLD, AnyFold
from fleet.gateway.value_forms import ValueForm
from fleet.protocol import Action, Coding, Delta, Task, Weighting
from fleet.protocol.keys import SignedKeyring
from fleet.protocol.masking import MaskParameters
from fleet.protocol.messages import NO_UNMASKERS
from fleet.protocol.round_parameters import ACTIONS, CODINGS, WEIGHTINGS, RoundParameters
from fleet.protocol.tasks import RoundTasks


class RoundState(StrEnum):
    """Where a round stands."""

    RUNNING = "running"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class Refusal(StrEnum):
    """Why a device has no part in a round that was asked for with it."""

    BUSY = "busy"
    UNKNOWN = "unknown"
    OLDER_LEASE = "older-lease"


class RoundKey(NamedTuple):
    """What names a round."""

    campaign: bytes
    round: int

    def __str__(self) -> str:
        """For logs and messages."""
        return f"round {self.round} of campaign {self.campaign.hex()}"

    @property
    def about(self) -> dict[str, str | int]:
        """The fields of structured logs."""
        return {"campaign": self.campaign.hex(), "round": self.round}


class TaskSpec(NamedTuple):
    """What one device is asked for. Ids are raw bytes here, as on the wire."""

    plan: bytes
    weights: bytes
    lease: int
    most_samples: int
    delay_seconds: float = 0.0
    """From the round's start to its task."""
    signature: bytes = b""
    """Of the task, by the fleet's task key."""
    part: int = 0
    """Of a fold that deals devices to parts."""


class MaskSpec(NamedTuple):
    """How a round's deltas are masked, and for how many unmaskers their seeds are sealed."""

    parameters: MaskParameters
    unmaskers: int
    digest: bytes
    """Of the unmaskers' keys."""


@dataclass(frozen=True)
class PlanSpec:
    """How many values a plan's delta has, and runs of (count, largest magnitude) in plan order."""

    values: int
    bounds: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def _limits(self) -> NDArray[np.int64] | None:
        if not self.bounds:
            return None
        counts, bounds = zip(*self.bounds, strict=True)
        return np.repeat(np.array(bounds, np.int64), counts)

    def beyond_bounds(self, values: NDArray[np.int32] | NDArray[np.uint32]) -> str | None:
        """Which of a delta's ``values`` (shape: the plan's values) no device can send, if any."""
        limits = self._limits
        if limits is None or not values.size:
            return None
        # As int64: the magnitude of -2^31 isn't an int32.
        beyond = np.flatnonzero(np.abs(values.astype(np.int64)) > limits)
        if not beyond.size:
            return None
        first = int(beyond[0])
        return (
            f"value {first} is {values[first]}, beyond ±{limits[first]} "
            f"({beyond.size} of {values.size} values are beyond their bounds)"
        )


@dataclass(frozen=True)
class RoundSpec:
    """What was asked for."""

    key: RoundKey
    action: str
    seed: int
    tasks: Mapping[str, TaskSpec]
    plans: Mapping[bytes, PlanSpec]
    parameters: RoundParameters
    fold: AnyFold
    target: int
    masks: MaskSpec | None = None
    personal: int = 0
    keyring: bytes = b""
    """For devices that have announced a lower generation."""

    @cached_property
    def weights(self) -> frozenset[bytes]:
        """Versions that its tasks start from."""
        return frozenset(task.weights for task in self.tasks.values())

    @cached_property
    def seconds(self) -> float:
        """How long the round may take: until the time of the last device is over."""
        delays = (task.delay_seconds for task in self.tasks.values())
        return max(delays, default=0.0) + self.parameters.deadline_seconds

    @property
    def trains(self) -> bool:
        """Whether devices are to train, or only to score."""
        return self.action == ACTIONS[Action.TRAIN]

    @property
    def coding(self) -> int:
        """As on the wire."""
        return Coding(CODINGS.index(self.parameters.coding))

    @property
    def weighting(self) -> int:
        """As on the wire."""
        return Weighting(WEIGHTINGS.index(self.parameters.weighting))

    @property
    def form(self) -> ValueForm:
        """Of the values of its deltas."""
        if self.masks is None:
            return ValueForm()
        return ValueForm(self.masks.parameters.bits, self.masks.unmaskers)

    def part_of(self, device: str) -> int:
        """The part of its fold that a device's delta is added to."""
        return self.fold.part_of(self.seed, device, self.tasks[device].part)

    def weight(self, train_samples: int) -> int:
        """How much a delta counts; scores alone don't."""
        return min(1, train_samples) if self.weighting == Weighting.UNIFORM else train_samples

    def encode(self) -> bytes:
        """One byte string for one content."""
        return cbor2.dumps(
            [
                *self.key,
                self.action,
                self.seed,
                {device: list(task) for device, task in sorted(self.tasks.items())},
                {plan: [of.values, of.bounds] for plan, of in sorted(self.plans.items())},
                self.parameters.model_dump(),
                self.fold.model_dump(),
                self.target,
                self.masks and [astuple(self.masks.parameters), *self.masks[1:]],
                self.personal,
                self.keyring,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> RoundSpec:
        """What ``encode`` wrote."""
        campaign, number, action, seed, tasks, plans, parameters, fold, *rest = cbor2.loads(data)
        target, masks, personal, keyring = rest
        return cls(
            RoundKey(campaign, number),
            action,
            seed,
            {device: TaskSpec(*task) for device, task in tasks.items()},
            {
                plan: PlanSpec(values, None if bounds is None else tuple(map(tuple, bounds)))
                for plan, (values, bounds) in plans.items()
            },
            RoundParameters.model_validate(parameters),
            FOLD.validate_python(fold),
            target,
            masks and MaskSpec(MaskParameters(*masks[0]), *masks[1:]),
            personal,
            keyring,
        )

    @property
    def content(self) -> RoundSpec:
        """What makes it this round and no other: without keys, which may be newer another time."""
        tasks = {device: task._replace(signature=b"") for device, task in self.tasks.items()}
        return replace(self, tasks=tasks, keyring=b"")

    @cached_property
    def _tasks(self) -> RoundTasks:
        return RoundTasks(
            *self.key,
            self.action,
            self.seed,
            self.parameters,
            self.personal,
            self.masks.parameters if self.masks else None,
            self.masks.digest if self.masks else NO_UNMASKERS,
        )

    @cached_property
    def _generation(self) -> int:
        return SignedKeyring.decode(self.keyring).keyring.generation if self.keyring else 0

    def task(self, device: str, weights_bytes: int, generation: int) -> Task:
        """The task message of ``device``, which follows the keyring of this generation."""
        of = self.tasks[device]
        return replace(
            self._tasks.task(device, of.lease, of.plan, of.weights, weights_bytes),
            keyring=self.keyring if generation < self._generation else b"",
            signature=of.signature,
        )


class Report(NamedTuple):
    """What is kept of an accepted delta beside its part in a sum."""

    device: str
    plan: bytes
    coded_crc32: int
    train_samples: int
    train_steps: int
    held_out_samples: int
    correct_before: int
    correct_after: int
    loss_before_thousandths: int
    loss_after_thousandths: int
    correct_local: int
    kept: int
    coded_bytes: int
    payload_bytes: int
    seconds: float
    nonce: bytes = b""
    """Of a masked delta…"""
    seals: bytes = b""
    """…with its seals, end to end."""


@dataclass
class PartialDelta:
    """Chunks of one device's delta that have arrived; the bytes themselves are in the store."""

    header: Delta
    received: set[int] = field(default_factory=set)
    payload_bytes: int = 0


@dataclass(frozen=True)
class Tally:
    """How many devices have delivered, and how many have declined for which reason."""

    accepted: int = 0
    declined: Mapping[int, int] = field(default_factory=dict)


@dataclass
class Round:
    """Where a round stands. Of one that has ended only the store knows the devices."""

    spec: RoundSpec
    content: bytes
    """Digest of the request, by which its repetition is known."""
    deadline: float
    """On the monotonic clock of this process."""
    refused: Mapping[str, str] = field(default_factory=dict)
    state: RoundState = RoundState.RUNNING
    accepted: dict[str, int] = field(default_factory=dict)
    """With the CRC-32 of what was counted, for the receipt of a second delta."""
    declined: dict[str, int] = field(default_factory=dict)
    partial: dict[str, PartialDelta] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    """Deltas that weren't accepted, by kind."""
    past: Tally = Tally()
    """What came of its devices, once it has ended."""
    part: int = 0
    """Where the fold goes by arrival: the part that deltas go to now…"""
    closed_through: int = 0
    """…and how many deltas lie in those before."""
    weights: frozenset[bytes] = field(init=False)
    held_back: deque[tuple[float, str]] = field(init=False)
    """Delays of the devices whose tasks haven't gone out, the next one first."""

    def __post_init__(self) -> None:
        """Take what outlives the round from its tasks."""
        self.weights = self.spec.weights
        delays = ((task.delay_seconds, device) for device, task in self.spec.tasks.items())
        self.held_back = deque(sorted(one for one in delays if one[0]))
        if not self.open:
            self._forget_devices()

    @property
    def key(self) -> RoundKey:
        """Campaign and round."""
        return self.spec.key

    @property
    def open(self) -> bool:
        """Whether deltas are still added up."""
        return self.state is RoundState.RUNNING

    @property
    def waiting(self) -> set[str]:
        """Devices that have neither delivered nor declined."""
        return self.spec.tasks.keys() - self.accepted.keys() - self.declined.keys()

    def due(self, device: str) -> float:
        """When a device's task goes out, on the clock of `deadline`; its time counts from then."""
        return self.deadline - self.spec.seconds + self.spec.tasks[device].delay_seconds

    def seconds_left(self, device: str, now: float) -> float:
        """How much of its time a device has left."""
        return self.due(device) + self.spec.parameters.deadline_seconds - now

    def take_due(self, now: float) -> list[str]:
        """The devices whose tasks were held back until now; they aren't any more.

        One that has delivered needs none: where the wall clock was set back while no gateway ran,
        tasks that were out are held back once more.
        """
        found = []
        while self.held_back and self.due(self.held_back[0][1]) <= now:
            found.append(self.held_back.popleft()[1])
        return [device for device in found if device not in self.accepted]

    @property
    def settled(self) -> bool:
        """Whether nothing more is wanted or can come."""
        answered = len(self.accepted) + len(self.declined)  # no device is in both
        return len(self.accepted) >= self.spec.target or answered >= len(self.spec.tasks)

    @property
    def arrived(self) -> int:
        """Where the fold goes by arrival: how many deltas nobody has taken out yet."""
        if not self.spec.fold.by_arrival or self.state is RoundState.CANCELLED:
            return 0
        accepted = len(self.accepted) if self.open else self.past.accepted
        return accepted - self.closed_through

    def has_task(self, device: str) -> bool:
        """Whether a device of the cohort can't have another round's task beside this one's.

        Where the fold goes by arrival, one that has delivered needn't wait for the others.
        """
        return not (self.spec.fold.by_arrival and device in self.accepted)

    @property
    def tally(self) -> Tally:
        """What came of its devices, or has come so far."""
        if self.open:
            return Tally(len(self.accepted), Counter(self.declined.values()))
        return self.past

    def end(self, state: RoundState) -> None:
        """Nothing is added up any more."""
        self.past = self.tally
        self.state = state
        self._forget_devices()

    def _forget_devices(self) -> None:
        # Without the limits, too, which plans have of all their values.
        plans = {plan: replace(of) for plan, of in self.spec.plans.items()}
        self.spec = replace(self.spec, tasks={}, plans=plans)
        self.accepted, self.declined, self.partial = {}, {}, {}
        self.held_back.clear()
