"""Aggregation rules by name: what gateways fold, and what the coordinator makes of it.

A rule is data (a campaign's configuration holds one) with two pure functions. `fold` tells the
gateways how to add deltas up while they come in: into one sum per plan, or into several, so that no
single delta need be kept. `apply` turns the folds of a round into the next master weights. What a
rule remembers from round to round is bytes that only the rule itself reads.

A new rule is a class here and its name in `Rule`; a new fold is a name in the gateway's
specification (docs/specification/gateway.md, `start`) and its code in fleet/gateway.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from fleet.aggregation.master import FloatVector
from fleet.aggregation.mean import IntVector, MasterState, PlanSum, mean_change, moved
from fleet.errors import AggregationError
from fleet.protocol import fields

# Of one part of a fold: the sums of all plans and gateways.
Part = Sequence[PlanSum]


class WantedSets(NamedTuple):
    """So many sets of devices that hide in each other, of each update plan.

    `least` it can't do without; more are of use from `useful` on, up to `most`. There may be more
    than that, since a set has no more than 256 devices.
    """

    least: int = 1
    useful: int = 1
    most: int = 1


class AggregationRule(BaseModel, ABC):
    """What every rule has."""

    model_config = fields.FORM

    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """What the change of a round is multiplied by."""

    @abstractmethod
    def fold(self) -> dict[str, Any]:
        """What gateways are told to do: `name`, and the fold's parameters."""

    @abstractmethod
    def apply(self, state: MasterState, parts: Sequence[Part]) -> MasterState:
        """The state after a round; coordinates that nobody trained stay as they are.

        `parts` are the fold's, each with the sums of all plans and gateways; a masked set that
        counts nothing is a sum of weight 0.
        """

    def sets(self) -> WantedSets:
        """How many sets of masked devices it wants of each update plan."""
        return WantedSets()

    def of_sets(self, parts: Sequence[Part]) -> Sequence[Part]:
        """What `apply` takes of the sets of a masked round: one sum of each plan, where it takes no
        more."""
        return [[one for part in parts for one in part]]

    def chosen(self, parts: Sequence[Part]) -> str:
        """What it does with these parts, in words; what its name says where that is empty."""
        return ""


class FedAvg(AggregationRule):
    """Weighted mean over those who trained a coordinate (arXiv 1602.05629)."""

    rule: Literal["fedavg"] = "fedavg"

    def fold(self) -> dict[str, Any]:
        """One sum per plan."""
        return {"name": "sums"}

    def apply(self, state: MasterState, parts: Sequence[Part]) -> MasterState:
        """See `AggregationRule`."""
        change, _ = mean_change(_only(parts), state.master.size)
        return moved(state, self.learning_rate * change, state.rule_state)


class ServerMomentum(AggregationRule):
    """FedAvg with momentum at the server (FedAvgM, arXiv 1909.06335): v ← βv + change.

    Where nobody trained a coordinate its velocity waits, since no device speaks for it.
    """

    rule: Literal["server-momentum"] = "server-momentum"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9

    def fold(self) -> dict[str, Any]:
        """One sum per plan."""
        return {"name": "sums"}

    def apply(self, state: MasterState, parts: Sequence[Part]) -> MasterState:
        """See `AggregationRule`. The rule's state: velocities, float64, little endian."""
        size = state.master.size
        change, touched = mean_change(_only(parts), size)
        velocity = np.frombuffer(state.rule_state, "<f8").copy() if state.rule_state else None
        if velocity is None:
            velocity = np.zeros(size)
        elif velocity.size != size:
            raise AggregationError(
                f"the momentum of {velocity.size} values doesn't belong to {size} weights: "
                "the store was changed by hand"
            )
        velocity[touched] = self.momentum * velocity[touched] + change[touched]
        step = np.where(touched, self.learning_rate * velocity, 0.0)
        return moved(state, step, velocity.astype("<f8").tobytes())


class _Adaptive(AggregationRule):
    """What Adam and Yogi share (adaptive federated optimization, arXiv 2003.00295, algorithm 2).

    m ← β₁m + (1-β₁)change, v as the rule has it, then each coordinate moves by
    learning_rate · s · m / (√v + τs). The paper has s = 1; here it is √(mean of v over the tensor),
    since a step of one tensor means something else than one of another: a learning rate of 1 moves
    a coordinate by about as much as its tensor's devices do. Coordinates that nobody trained wait.
    """

    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    adaptivity: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    """The paper's τ: the larger it is, the more alike this is to momentum."""

    def fold(self) -> dict[str, Any]:
        """One sum per plan."""
        return {"name": "sums"}

    def apply(self, state: MasterState, parts: Sequence[Part]) -> MasterState:
        """See `AggregationRule`. The rule's state: m, then v, float64, little endian."""
        size = state.master.size
        change, touched = mean_change(_only(parts), size)
        if state.rule_state:
            moments = np.frombuffer(state.rule_state, "<f8").copy()
        else:
            moments = np.zeros(2 * size)
        if moments.size != 2 * size:
            raise AggregationError(
                f"moments of {moments.size // 2} values don't belong to {size} weights: "
                "the store was changed by hand"
            )
        first, second = moments[:size], moments[size:]
        if not state.rule_state:
            # As much as correcting for the bias of moments that begin at 0 comes to.
            first[touched], second[touched] = change[touched], np.square(change[touched])
        else:
            first[touched] = self.beta1 * first[touched] + (1 - self.beta1) * change[touched]
            second[touched] = self.second_moment(second[touched], np.square(change[touched]))
        step = np.zeros(size)
        start = 0
        for slot in state.layout:
            place = slice(start, start + slot.size)
            start += slot.size
            moving = touched[place] & (second[place] > 0)
            if not np.any(moving):
                continue
            scale = float(np.sqrt(np.mean(second[place][moving])))
            wanted = first[place][moving] / (
                np.sqrt(second[place][moving]) + self.adaptivity * scale
            )
            step[place][moving] = self.learning_rate * scale * wanted
        return moved(state, step, moments.astype("<f8").tobytes())

    @abstractmethod
    def second_moment(self, before: FloatVector, square: FloatVector) -> FloatVector:
        """v of coordinates whose change has this square."""


class ServerAdam(_Adaptive):
    """FedAdam: v ← β₂v + (1-β₂)change²."""

    rule: Literal["server-adam"] = "server-adam"

    def second_moment(self, before: FloatVector, square: FloatVector) -> FloatVector:
        """See `_Adaptive`."""
        return self.beta2 * before + (1 - self.beta2) * square


class ServerYogi(_Adaptive):
    """FedYogi: v ← v - (1-β₂)change²·sign(v - change²); it forgets large changes slowly."""

    rule: Literal["server-yogi"] = "server-yogi"

    def second_moment(self, before: FloatVector, square: FloatVector) -> FloatVector:
        """See `_Adaptive`."""
        return before - (1 - self.beta2) * square * np.sign(before - square)


class BucketMedian(AggregationRule):
    """Median of the means of seeded buckets of devices: a few hostile devices move it little.

    The devices of a round are dealt to `buckets` by round seed and name; a bucket's mean is that
    of FedAvg, and each coordinate takes the median over the buckets that trained it (median of
    means; Byzantine setting: arXiv 1705.05491). It needs no single device's delta. Fewer than half
    of the buckets may have a hostile device in them.
    """

    rule: Literal["bucket-median"] = "bucket-median"
    buckets: Annotated[int, Field(ge=1, le=64)] = 8

    def fold(self) -> dict[str, Any]:
        """One sum per plan and bucket."""
        return {"name": "buckets", "count": self.buckets}

    def sets(self) -> WantedSets:
        """See `AggregationRule`."""
        return WantedSets(self.buckets, self.buckets, self.buckets)

    def of_sets(self, parts: Sequence[Part]) -> Sequence[Part]:
        """See `AggregationRule`; sets beyond the buckets' number join theirs."""
        joined: list[list[PlanSum]] = [[] for _ in range(self.buckets)]
        for number, part in enumerate(parts):
            joined[number % self.buckets] += part
        return joined

    def apply(self, state: MasterState, parts: Sequence[Part]) -> MasterState:
        """See `AggregationRule`."""
        if len(parts) != self.buckets:
            raise AggregationError(f"{len(parts)} buckets came where {self.buckets} were asked for")
        size = state.master.size
        means = _means(parts, size)
        trained = ~np.all(np.isnan(means), axis=0)
        step = np.zeros(size)
        step[trained] = np.nanmedian(means[:, trained], axis=0)
        return moved(state, self.learning_rate * step, state.rule_state)


class SetMedian(AggregationRule):
    """Median of the means of a masked round's sets, where enough were dealt; else the mean.

    As `BucketMedian`, coordinate by coordinate: over the sets that trained it if `least_sets` were
    dealt, else the mean of FedAvg over all of them. Where so many were dealt and fewer count, a
    coordinate stays as it is: else whoever spoils a set could make a mean of a median, and pull at
    that. It is what masked campaigns do where nothing else is said, since nobody can look at a
    masked delta.
    """

    rule: Literal["set-median"] = "set-median"
    least_sets: Annotated[int, Field(ge=3, le=64)] = 3
    """For a median; one of three may have a hostile device in it."""
    most_sets: Annotated[int, Field(ge=3, le=64)] = 8
    """Devices are dealt to so many sets, where there are enough of them."""

    @model_validator(mode="after")
    def _most_are_more(self) -> Self:
        if self.most_sets < self.least_sets:
            raise ValueError(f"most_sets {self.most_sets} is below least_sets {self.least_sets}")
        return self

    def fold(self) -> dict[str, Any]:
        """Sets are dealt by whoever plans a round; without masks there are none."""
        return {"name": "sums"}

    def sets(self) -> WantedSets:
        """See `AggregationRule`."""
        return WantedSets(1, self.least_sets, self.most_sets)

    def of_sets(self, parts: Sequence[Part]) -> Sequence[Part]:
        """See `AggregationRule`."""
        return parts

    def apply(self, state: MasterState, parts: Sequence[Part]) -> MasterState:
        """See `AggregationRule`."""
        size = state.master.size
        step, _ = mean_change([one for part in parts for one in part], size)
        means = _means(parts, size)
        dealt, counted = _sets_of_each(parts, size)
        enough = counted >= self.least_sets
        step[enough] = np.nanmedian(means[:, enough], axis=0)
        step[(dealt >= self.least_sets) & ~enough] = 0.0
        return moved(state, self.learning_rate * step, state.rule_state)

    def chosen(self, parts: Sequence[Part]) -> str:
        """See `AggregationRule`."""
        ends = [one.coordinates.max(initial=-1) for part in parts for one in part]
        size = 1 + int(max(ends, default=-1))
        dealt, counted = _sets_of_each(parts, size)
        stays = np.any((dealt >= self.least_sets) & (counted < self.least_sets))
        sets = sum(1 for part in parts if any(one.weight for one in part))
        too_few = f"too few for a median (least_sets {self.least_sets})"
        if np.any(counted >= self.least_sets):
            said = f"median over {sets} sets"
        elif np.any((dealt < self.least_sets) & (counted > 0)):
            said = f"mean, since {sets} sets are {too_few}"
        else:
            return f"no change, since {sets} of {sum(map(bool, parts))} sets are {too_few}"
        if stays:
            said += f"; no change where fewer than {self.least_sets} of the sets dealt count"
        return said


Rule = Annotated[
    FedAvg | ServerMomentum | ServerAdam | ServerYogi | BucketMedian | SetMedian,
    Field(discriminator="rule"),
]
"""A rule in a configuration: `{"rule": NAME, …}`."""


def _means(parts: Sequence[Part], size: int) -> npt.NDArray[np.float64]:
    """The mean change of each part (shape [parts, size]); NaN where it trained nothing."""
    means = np.full((len(parts), size), np.nan)
    for row, part in zip(means, parts, strict=True):
        change, touched = mean_change(part, size)
        row[touched] = change[touched]
    return means


def _sets_of_each(parts: Sequence[Part], size: int) -> tuple[IntVector, IntVector]:
    """How many parts were to train each coordinate, and how many count (both of shape [size])."""
    dealt, counted = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for part in parts:
        for found, sums in ((dealt, part), (counted, [one for one in part if one.weight])):
            trained = np.zeros(size, np.bool_)
            for one in sums:
                trained[one.coordinates] = True
            found += trained
    return dealt, counted


def _only(parts: Sequence[Part]) -> Part:
    if len(parts) != 1:
        raise AggregationError(f"{len(parts)} parts came where one sum per plan was asked for")
    return parts[0]
