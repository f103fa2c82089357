"""What a round with tiny_model.c must give, in numpy: the oracle of the client's tests."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.bundle import SamplesInfo
from fleet.protocol import Action, Coding, Delta, Task, Weighting, delta_coding
from simulator.devices.flash_image import held_out_mask, sample_region

CLASSES, INPUTS = 4, 16
SAMPLE_DIGEST = b"ynit".hex() + "00" * 28


def mix(value: int) -> int:
    value ^= value >> 16
    value = value * 0x7FEB352D & 0xFFFFFFFF
    value ^= value >> 15
    value = value * 0x846CA68B & 0xFFFFFFFF
    return value ^ value >> 16


def tf_random(key: int, stream: int, counter: int) -> int:
    """arithmetic.md, "Random bits"."""
    first = mix(key + 0x9E3779B9 & 0xFFFFFFFF)
    return mix(mix(first + stream & 0xFFFFFFFF) + counter & 0xFFFFFFFF)


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """wire.md, "Round on the device"."""
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = tf_random(seed, epoch, i) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


@dataclass
class Weights:
    matrix: NDArray[np.int64]  # [classes, inputs]
    biases: NDArray[np.int64]

    @classmethod
    def parse(cls, blob: bytes) -> Weights:
        matrix = np.frombuffer(blob[: -CLASSES * 4], "<i2").reshape(CLASSES, -1)
        return cls(matrix.astype(np.int64), np.frombuffer(blob[-CLASSES * 4 :], "<i4").astype(int))

    def blob(self) -> bytes:
        return self.matrix.astype("<i2").tobytes() + self.biases.astype("<i4").tobytes()

    def scores(self, sample: NDArray[np.int8]) -> NDArray[np.int64]:
        return self.matrix @ sample.astype(np.int64) + self.biases


@dataclass
class Data:
    samples: NDArray[np.int8]
    labels: NDArray[np.int64]

    def region(self, region: SamplesInfo) -> bytes:
        return sample_region(self.samples, self.labels, region, SAMPLE_DIGEST)

    def part(self, held_out: bool) -> Data:
        mask = held_out_mask(len(self.labels)) == held_out
        return Data(self.samples[mask], self.labels[mask])

    def correct(self, weights: Weights) -> int:
        return sum(
            int(np.argmax(weights.scores(sample)) == label)
            for sample, label in zip(self.samples, self.labels, strict=True)
        )

    def mean_loss_thousandths(self, weights: Weights) -> int:
        total = 0
        for sample, label in zip(self.samples, self.labels, strict=True):
            scores = weights.scores(sample)
            total += int(scores.max() - scores[label]) << 6
        parts = len(self.labels) << 16
        return (total * 1000 + parts // 2) // parts


def clustered_data(count: int = 60, seed: int = 1, inputs: int = INPUTS) -> Data:
    dice = np.random.default_rng(seed)
    centres = dice.integers(-100, 100, (CLASSES, inputs))
    labels = dice.integers(0, CLASSES, count)
    noise = dice.normal(0, 30, (count, inputs))
    samples = np.clip(centres[labels] + noise, -128, 127).astype(np.int8)
    return Data(samples, labels)


def train(start: Weights, data: Data, seed: int, epochs: int, biases_only: bool) -> Weights:
    weights = Weights(start.matrix.copy(), start.biases.copy())
    part = data.part(held_out=False)
    for epoch in range(epochs):
        for index in shuffled(len(part.labels), seed, epoch):
            sample, label = part.samples[index].astype(np.int64), part.labels[index]
            best = int(np.argmax(weights.scores(part.samples[index])))
            if best != label:
                if not biases_only:
                    weights.matrix[label] += sample >> 3
                    weights.matrix[best] -= sample >> 3
                weights.biases[label] += 1
                weights.biases[best] -= 1
    return weights


def task_for(plan: bytes, blob: bytes, **changes: object) -> Task:
    task = Task(
        lease=1,
        campaign=b"campaign",
        round=1,
        action=Action.TRAIN,
        plan=plan,
        weights=hashlib.sha256(blob).digest(),
        weights_bytes=len(blob),
        chunk_bytes=16,
        epochs=2,
        learning_rate_q20=1000,
        seed=7,
        coding=Coding.RICE,
        weighting=Weighting.SAMPLES,
        uplink_chunk_bytes=16_384,
        deadline_seconds=600,
        max_score_drop_permille=1000,
        check_in_seconds=0,
    )
    if changes.get("action", Action.TRAIN) != Action.TRAIN:
        changes = {"epochs": 0, **changes}
    return replace(task, **changes)  # type: ignore[arg-type]


def values_of(deltas: list[Delta], count: int) -> NDArray[np.int32]:
    """The values of a delta whose chunks are all there."""
    chunks = {delta.chunk: delta for delta in deltas}
    assert sorted(chunks) == list(range(deltas[0].chunks))
    coded = b"".join(chunks[index].coded for index in sorted(chunks))
    assert len(coded) == deltas[0].coded_bytes
    assert zlib.crc32(coded) == deltas[0].coded_crc32
    return delta_coding.decode(coded, count)


def expected_values(before: Weights, after: Weights, biases_only: bool) -> NDArray[np.int64]:
    biases = after.biases - before.biases
    if biases_only:
        return biases
    return np.concatenate([(after.matrix - before.matrix).ravel(), biases])
