"""A coordinator that lies: weights made so that a sum of deltas gives single pictures away.

All neurons of a fully connected first layer measure the same thing of a picture, and let it through
from different thresholds on. Two neighbours' movements then differ by the pictures between their
thresholds: where that is one, by a multiple of that picture, in the sum of a whole set as well
(Robbing the Fed, arXiv 2110.13057). Masks don't help: the sum is what they are to give. Thresholds
lie in the tail of what public samples measure, so far apart that one picture is expected in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.privacy.inversion import Reals, pixels
from benchmarks.privacy.protection import Protection, Values, devices_of, observe
from benchmarks.privacy.victims import HIDDEN, Share, Victim, people, public_samples
from codegen.arithmetic.integers import Ints
from codegen.graph.ir import Conv
from codegen.program import blob

PLAN = "dense-full"
PUBLIC = 3000
RECOGNIZED = 0.98
"""Correlation from which on a picture counts as recovered."""
MOST_DROP = 0.1
_SPREAD = 1.5  # deviations of the measurement, in real units of the layer's output
_PULL = 16.0  # weight of a trap in the output of one class


@dataclass(frozen=True)
class Recovery:
    """What a set of devices has lost to crafted weights."""

    protection: str
    pictures: int
    """That the set has trained."""
    recovered: int
    decoys: int
    """Pictures of others that look recovered: chance."""
    declining: int
    """Devices that wouldn't train such weights if their task allowed a drop of `MOST_DROP` at most.
    It is the coordinator who writes tasks."""
    devices: int


def crafted_weights(victim: Victim, expected: int, seed: int) -> bytes:
    """A weights blob with traps for a set that trains about ``expected`` pictures."""
    graph = victim.task.graph
    (layer,) = graph.convolutions
    assert isinstance(layer, Conv)
    source = graph.tensors[graph.input]
    public = (pixels(public_samples(victim, PUBLIC, seed)) - source.zero_point) * source.scale
    # What differs from digit to digit, and not from sensor to sensor, which are darker or lighter.
    shapes = public - public.mean(axis=1, keepdims=True)
    direction = np.linalg.svd(shapes - shapes.mean(axis=0), full_matrices=False)[2][0]
    direction -= direction.mean()
    largest = 127 * layer.weight_scale.min() / np.abs(direction).max()
    wanted = direction * min(largest, _SPREAD / np.std(public @ direction))
    steps = np.rint(wanted / layer.weight_scale[:, None])
    measured = public @ (steps * layer.weight_scale[:, None]).T
    # One threshold for each picture that is expected above the last one.
    shares = 1 - (np.arange(HIDDEN) + 1) / expected
    thresholds = np.array([np.quantile(measured[:, at], share) for at, share in enumerate(shares)])
    bias = np.rint(-thresholds / (source.scale * layer.weight_scale))
    head = np.zeros(graph.head.weight.shape, np.int64)
    head[0] = round(min(127.0 * 256, _PULL / (graph.head.weight_scale / 256)))
    values: dict[str, Ints] = {
        f"{layer.name}.weight": steps.reshape(layer.weight.shape).astype(np.int64),
        f"{layer.name}.bias": bias.astype(np.int64),
        f"{graph.head.name}.weight": head,
        f"{graph.head.name}.bias": np.zeros(graph.head.bias.shape, np.int64),
    }
    changed = blob.with_values(graph, values)
    return blob.published_by(changed, victim.task.plans.values()).published.pack()


def differences(victim: Victim, total: Values) -> Reals:
    """What neighbouring neurons' movements differ by (neurons, pixels), in codes above black."""
    segment = victim.programs[PLAN].segment_of("hidden.weight")
    (layer,) = victim.task.graph.convolutions
    assert segment is not None
    place = slice(segment.first_value, segment.first_value + segment.values)
    moved = total[place].reshape(HIDDEN, -1) * layer.weight_scale[:, None]
    apart = np.diff(moved, axis=0, prepend=0)
    return apart * np.sign(apart.sum(axis=1, keepdims=True))


def recovered(found: Reals, pictures: Reals) -> int:
    """How many of the pictures (n, pixels) look like one of those found."""
    some = found[found.std(axis=1) > 0]
    if not len(some):
        return 0
    alike = np.corrcoef(some, pictures)[: len(some), len(some) :]
    return int((alike.max(axis=0) >= RECOGNIZED).sum())


def attack(victim: Victim, protection: Protection, devices: int, seed: int) -> Recovery:
    """Sends crafted weights to a set of people's devices, who train all that they have."""
    everybody = people(victim, 2 * devices, seed)
    members, others = everybody[:devices], everybody[devices:]
    expected = sum(len(share) for share in members)
    weights = crafted_weights(victim, expected, seed)
    deltas = [
        victim.delta(PLAN, share, seed * 1000 + at, weights) for at, share in enumerate(members)
    ]
    view = observe(deltas, devices_of(seed, devices), protection, (seed, 0xCF))
    seen = [view.total] if protection.masked else list(view.messages)
    found = np.concatenate([differences(victim, one) for one in seen])
    drops = [
        accuracy(victim, share, victim.task.weights) - accuracy(victim, share, weights)
        for share in members
    ]
    return Recovery(
        protection.name,
        expected,
        recovered(found, _pictures(members)),
        recovered(found, _pictures(others)),
        sum(drop > MOST_DROP for drop in drops),
        devices,
    )


def _pictures(shares: list[Share]) -> Reals:
    return np.concatenate([pixels(share) for share in shares])


def accuracy(victim: Victim, share: Share, weights: bytes) -> float:
    """Part of right answers on a share's samples."""
    engine = victim.engine(PLAN)
    engine.load(weights)
    pairs = zip(share.codes, share.labels, strict=True)
    return float(np.mean([engine.score(codes, int(label)) == label for codes, label in pairs]))
