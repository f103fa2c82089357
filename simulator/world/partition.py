"""Which device has which samples: alike, by label, by quantity, by subject.

Dealt out, every sample goes to exactly one device. Which ones a device gets then depends on how
many share them, though not what it draws (its mixture of labels, its weight). With samples drawn
for each device by itself, two may have the same, and nothing depends on the number of devices.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulator.errors import WorldError
from simulator.world.draws import generator, place
from simulator.world.fields import Section

Indices: TypeAlias = NDArray[np.intp]
FITTING_STEPS = 100


@dataclass(frozen=True, eq=False)
class Pool:
    """What is to be dealt out: labels (n,) int64 and, where they are known, subjects (n,) int64."""

    labels: NDArray[np.int64]
    subjects: NDArray[np.int64] | None = None


class Alike(Section):
    """All devices have as many samples."""

    kind: Literal["alike"] = "alike"

    def weight(self, position: float, normal: float) -> float:
        """Relative size of the share of a device that lies at ``position`` of 0 … 1."""
        del position, normal
        return 1.0


class LogNormal(Section):
    """Some devices have more samples: the logarithm of their number is normal."""

    kind: Literal["log-normal"] = "log-normal"
    sigma: Annotated[float, Field(ge=0.0, le=5.0)] = 1.0
    """Standard deviation of the natural logarithm."""

    def weight(self, position: float, normal: float) -> float:
        """See `Alike`; ``normal`` is a standard normal draw."""
        del position
        return float(np.exp(self.sigma * normal))


class Zipf(Section):
    """A few devices have most samples: the device of rank r has r^-exponent of the largest."""

    kind: Literal["zipf"] = "zipf"
    exponent: Annotated[float, Field(ge=0.0, le=5.0)] = 1.0

    def weight(self, position: float, normal: float) -> float:
        """See `Alike`. The rank, as a share of all devices, is 1 - ``position``."""
        del normal
        return float((1.0 - position) ** -self.exponent)


Sizes = Annotated[Alike | LogNormal | Zipf, Field(discriminator="kind")]


def weights(
    sizes: Alike | LogNormal | Zipf, seed: int, purpose: str, devices: int
) -> NDArray[np.float64]:
    """Relative size of each device's share, (devices,)."""
    return np.array(
        [
            sizes.weight(
                place(seed, f"{purpose}/size", device),
                float(generator(seed, f"{purpose}/size/normal", device).normal()),
            )
            for device in range(devices)
        ]
    )


class PartitionKind(Section, ABC):
    """What every kind has. ``purpose`` keeps draws of two populations apart."""

    @abstractmethod
    def deal(self, pool: Pool, seed: int, purpose: str, devices: int) -> list[Indices]:
        """Positions in the pool for each device, every one exactly once."""

    @abstractmethod
    def draw(self, pool: Pool, seed: int, purpose: str, device: int, count: int) -> Indices:
        """``count`` positions for one device by itself; none twice while there are enough."""

    def filled(self, shares: list[Indices], least: int, seed: int, purpose: str) -> list[Indices]:
        """The shares, where devices with less than ``least`` got samples of those with most."""
        random = generator(seed, f"{purpose}/top up")
        kept = [share.tolist() for share in shares]
        richest = [(-len(share), device) for device, share in enumerate(kept)]
        heapq.heapify(richest)
        for share in kept:
            while len(share) < least:
                _, giver = heapq.heappop(richest)
                share.append(kept[giver].pop(int(random.integers(len(kept[giver])))))
                heapq.heappush(richest, (-len(kept[giver]), giver))
        return [np.array(share, dtype=np.intp) for share in kept]


class Iid(PartitionKind):
    """Any sample may be anybody's."""

    kind: Literal["iid"] = "iid"
    sizes: Sizes = Alike()

    def deal(self, pool: Pool, seed: int, purpose: str, devices: int) -> list[Indices]:
        """See `PartitionKind`."""
        order = generator(seed, f"{purpose}/deal").permutation(len(pool.labels))
        return _cut(order, weights(self.sizes, seed, purpose, devices))

    def draw(self, pool: Pool, seed: int, purpose: str, device: int, count: int) -> Indices:
        """See `PartitionKind`."""
        return _some(np.arange(len(pool.labels)), count, generator(seed, purpose, device))


class LabelSkew(PartitionKind):
    """Devices see labels in different mixtures (Hsu et al., arXiv 1909.06335).

    Each draws its mixture from a Dirichlet distribution with the parameters concentration · share
    of the label among all samples. Dealt out, shares are fitted so that each device has its size
    and each label is given away whole (iterative proportional fitting, Deming and Stephan 1940).
    """

    kind: Literal["label-skew"] = "label-skew"
    concentration: Annotated[float, Field(gt=0.0, le=1e9)]
    """Small: few labels each; large: all alike. Where an article has one parameter for each label,
    this is their sum."""
    sizes: Sizes = Alike()

    def mixture(self, pool: Pool, seed: int, purpose: str, device: int) -> NDArray[np.float64]:
        """Share of each label that there is, in order, in what the device sees."""
        shares = np.unique(pool.labels, return_counts=True)[1] / len(pool.labels)
        random = generator(seed, f"{purpose}/mixture", device)
        return random.dirichlet(self.concentration * shares)

    def deal(self, pool: Pool, seed: int, purpose: str, devices: int) -> list[Indices]:
        """See `PartitionKind`."""
        labels, counts = np.unique(pool.labels, return_counts=True)
        sizes = weights(self.sizes, seed, purpose, devices)
        sizes *= len(pool.labels) / sizes.sum()
        wanted = np.array([self.mixture(pool, seed, purpose, device) for device in range(devices)])
        # No share is quite nothing, else two devices that want the same one label fit nowhere.
        wanted = np.maximum(wanted, 1e-9)
        for _ in range(FITTING_STEPS):
            wanted *= (sizes / wanted.sum(axis=1))[:, None]
            wanted *= counts / wanted.sum(axis=0)
        shares: list[list[Indices]] = [[] for _ in range(devices)]
        for column, label in enumerate(labels):
            random = generator(seed, f"{purpose}/deal", int(label))
            positions = random.permutation(np.flatnonzero(pool.labels == label))
            # In an order of its own, so that the same devices don't win at each rounding.
            order = random.permutation(devices)
            for device, part in zip(order, _cut(positions, wanted[order, column]), strict=True):
                shares[device].append(part)
        return [np.concatenate(parts) for parts in shares]

    def draw(self, pool: Pool, seed: int, purpose: str, device: int, count: int) -> Indices:
        """See `PartitionKind`."""
        random = generator(seed, purpose, device)
        labels = np.unique(pool.labels)
        counts = random.multinomial(count, self.mixture(pool, seed, purpose, device))
        return np.concatenate(
            [
                _some(np.flatnonzero(pool.labels == label), number, random)
                for label, number in zip(labels, counts, strict=True)
            ]
        )


class BySubject(PartitionKind):
    """A device sees one subject, such as a person or a photographer.

    With fewer devices than subjects each has several; with more, several share a subject's samples.
    """

    kind: Literal["by-subject"] = "by-subject"

    def deal(self, pool: Pool, seed: int, purpose: str, devices: int) -> list[Indices]:
        """See `PartitionKind`."""
        subjects = self._in_order(pool, seed, purpose)
        shares: list[list[Indices]] = [[] for _ in range(devices)]
        for number, subject in enumerate(subjects):
            own = np.flatnonzero(pool.subjects == subject)
            owners = range(number, devices, len(subjects)) or [number % devices]
            own = generator(seed, f"{purpose}/deal", int(subject)).permutation(own)
            for device, part in zip(owners, _cut(own, np.ones(len(owners))), strict=True):
                shares[device].append(part)
        return [np.concatenate(parts) for parts in shares]

    def draw(self, pool: Pool, seed: int, purpose: str, device: int, count: int) -> Indices:
        """See `PartitionKind`."""
        subjects = self._in_order(pool, seed, purpose)
        own = np.flatnonzero(pool.subjects == subjects[device % len(subjects)])
        return _some(own, count, generator(seed, purpose, device))

    def filled(self, shares: list[Indices], least: int, seed: int, purpose: str) -> list[Indices]:
        """The shares as they are: nobody gets another one's samples.

        Raises: WorldError where one has less than ``least``.
        """
        del seed, purpose
        fewest = min(range(len(shares)), key=lambda device: len(shares[device]))
        if len(shares[fewest]) < least:
            raise WorldError(
                f"data.partition: device {fewest} has {len(shares[fewest])} samples of its "
                f"subject, {least} are wanted (data.min_samples); take fewer devices, which then "
                "have several subjects each"
            )
        return shares

    def _in_order(self, pool: Pool, seed: int, purpose: str) -> NDArray[np.int64]:
        if pool.subjects is None:
            raise WorldError(
                "data.partition: the data set doesn't say whose its samples are; use another kind "
                "than by-subject"
            )
        return generator(seed, f"{purpose}/subjects").permutation(np.unique(pool.subjects))


Partition = Annotated[Iid | LabelSkew | BySubject, Field(discriminator="kind")]


def check_enough(samples: int, devices: int, least: int) -> None:
    """Raises WorldError where there aren't ``least`` samples for each device."""
    if samples < least * devices:
        raise WorldError(
            f"data: {samples} samples can't be dealt to {devices} devices with {least} each "
            f"(data.min_samples); {samples // least} devices are the most, or set "
            "data.samples_per_device, so that devices may have the same samples"
        )


def _cut(positions: Indices, sizes: NDArray[np.float64]) -> list[Indices]:
    """Consecutive parts of these relative sizes."""
    ends = np.cumsum(sizes)
    return np.split(positions, np.rint(ends[:-1] / ends[-1] * len(positions)).astype(int))


def _some(positions: Indices, count: int, random: np.random.Generator) -> Indices:
    """``count`` of the positions: each once before any comes again."""
    rounds = [random.permutation(positions) for _ in range(-(-count // max(len(positions), 1)))]
    return np.concatenate([np.empty(0, np.intp), *rounds])[:count].astype(np.intp)
