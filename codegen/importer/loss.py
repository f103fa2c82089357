"""Which loss a model is trained with: what model and labels say, what the user said, or a guess.

A device trains classifiers, whose labels are class numbers, by cross entropy, and reconstructions
of the input by the mean squared error. A file of a network seldom says which of the two it is, nor
that it is something else: where nothing tells them apart, the importer asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.errors import ModelError
from codegen.graph.floats import LossChoice
from codegen.graph.ir import Loss
from codegen.quantization.calibration_set import open_npz

LABELS = "y"
"""The array of labels in an archive of samples."""


@dataclass(frozen=True)
class Outputs:
    """What the file tells of a model's outputs; sizes are those of axes above 1, without batch."""

    model: str
    name: str
    sizes: tuple[int, ...]
    input_sizes: tuple[int, ...]
    after_softmax: bool

    @property
    def count(self) -> int:
        """How many there are."""
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def can_be_the_input(self) -> bool:
        """Whether they have the input's shape, or that flattened, and aren't probabilities."""
        flat = (int(np.prod(self.input_sizes, dtype=np.int64)),)
        return not self.after_softmax and self.sizes in (self.input_sizes, flat)

    @property
    def are_a_picture(self) -> bool:
        """Whether they have several axes, as logits never have."""
        return len(self.sizes) > 1


def choose_loss(outputs: Outputs, wanted: Loss | None, samples: Path | str | None) -> LossChoice:
    """The loss of a model with ``outputs``.

    ``wanted`` is what the user said. ``samples`` is an .npz whose labels `y`, if it has any, are
    looked at where the model itself leaves it open. Raises ModelError where nobody can know, and
    where the device has no such loss; CalibrationError where ``samples`` can't be read.
    """
    what = f"model '{outputs.model}': output '{outputs.name}'"
    if outputs.are_a_picture and not outputs.can_be_the_input:
        raise ModelError(
            f"{what} has shape {_shown(outputs.sizes)}; needed are (batch, classes), or for an "
            f"autoencoder the input's {_shown(outputs.input_sizes)}"
        )
    if wanted is not None:
        return _as_wanted(what, outputs, wanted)
    if outputs.after_softmax:
        return LossChoice("cross-entropy", "the model ends in a Softmax")
    labels = _Labels.read(samples)
    if labels is not None and labels.are_the_input and outputs.can_be_the_input:
        return LossChoice("mse", f"the labels '{LABELS}' of the samples are the inputs themselves")
    if outputs.are_a_picture and (labels is None or labels.are_integers):
        return LossChoice("mse", "its output has the shape of its input")
    if labels is not None and not labels.could_be_classes(outputs.count):
        raise ModelError(
            f"{what} has {outputs.count} values, and the samples' labels '{LABELS}' are "
            f"{labels.description}: no numbers of classes 0 … {outputs.count - 1}. A device trains "
            "classifiers, and autoencoders by the mean squared error against their own input; "
            f"regression to other targets isn't supported. {_remedy(outputs)}"
        )
    if labels is not None and (labels.cover(outputs.count) or not outputs.can_be_the_input):
        return LossChoice("cross-entropy", f"the labels '{LABELS}' of the samples are classes")
    if outputs.can_be_the_input:
        raise ModelError(
            f"{what} has as many values ({outputs.count}) as the input, and no Softmax: is this a "
            f"classifier or an autoencoder? {_remedy(outputs)} Integer labels '{LABELS}' beside "
            "the samples, of at least half of the classes, tell as well"
        )
    return LossChoice(
        "cross-entropy",
        f"the model has no Softmax, and there are no labels '{LABELS}' beside samples",
        guessed=True,
    )


def _remedy(outputs: Outputs) -> str:
    said = []
    if not outputs.are_a_picture:
        said.append("--loss cross-entropy says that the outputs are logits, one per class.")
    if outputs.can_be_the_input:
        said.append("--loss mse says that they reconstruct the input.")
    return " ".join(said)


def _as_wanted(what: str, outputs: Outputs, wanted: Loss) -> LossChoice:
    if wanted == "cross-entropy" and outputs.are_a_picture:
        raise ModelError(
            f"{what} has shape {_shown(outputs.sizes)}, and --loss cross-entropy needs (batch, "
            "classes); leave the option out, or export the logits"
        )
    if wanted == "mse" and outputs.after_softmax:
        raise ModelError(
            f"{what} is made by a Softmax, and --loss mse is for outputs that reconstruct the "
            "model's input; leave the option out, or export the model without the Softmax"
        )
    if wanted == "mse" and not outputs.can_be_the_input:
        raise ModelError(
            f"{what} has {outputs.count} values, and the input {_shown(outputs.input_sizes)}: "
            "--loss mse is against the model's own input. Regression to other targets isn't "
            "supported on a device; --loss cross-entropy trains the outputs as logits of classes"
        )
    return LossChoice(wanted, f"--loss {wanted} says so")


def _shown(sizes: tuple[int, ...]) -> str:
    return str(["batch", *sizes]).replace("'", "")


@dataclass(frozen=True, eq=False)
class _Labels:
    """The labels of an archive of samples, and its samples."""

    values: NDArray[np.generic]
    x: NDArray[np.generic] | None

    @classmethod
    def read(cls, samples: Path | str | None) -> _Labels | None:
        """None where there is no archive, or no labels in it."""
        if samples is None:
            return None
        with open_npz(samples, "give the samples as an .npz file") as archive:
            if LABELS not in archive.files:
                return None
            return cls(archive[LABELS], archive["x"] if "x" in archive.files else None)

    @property
    def are_integers(self) -> bool:
        return self.values.dtype.kind in "biu"

    @property
    def are_the_input(self) -> bool:
        if self.x is None or self.values.dtype.kind != "f" or self.values.size != self.x.size:
            return False
        return bool(np.array_equal(self.values.ravel(), self.x.ravel()))

    @property
    def classes(self) -> NDArray[np.int64]:
        """A number for each sample, also where classes are written as rows of zeros and a one."""
        if self._one_hot:
            return np.asarray(self.values.argmax(axis=1), dtype=np.int64)
        return self.values.reshape(-1).astype(np.int64)

    @property
    def _one_hot(self) -> bool:
        if (
            self.values.ndim != 2
            or self.values.shape[1] < 2
            or self.values.dtype.kind not in "biuf"
        ):
            return False
        rows = self.values.astype(np.float64)
        return bool(np.isin(rows, (0.0, 1.0)).all() and (rows.sum(axis=1) == 1.0).all())

    def could_be_classes(self, count: int) -> bool:
        """Whether these are numbers, or rows, of ``count`` classes."""
        if self._one_hot:
            return int(self.values.shape[1]) == count
        one_each = self.values.ndim == 1 or self.values.shape[1:] == (1,)
        if not self.are_integers or not one_each or self.values.size == 0:
            return False
        return bool(self.classes.min() >= 0 and self.classes.max() < count)

    def cover(self, count: int) -> bool:
        """Whether half of ``count`` classes occur: marks of other kinds, as of anomalies, don't."""
        return 2 * len(np.unique(self.classes)) >= count

    @property
    def description(self) -> str:
        shape = list(self.values.shape)
        if not self.are_integers or self.values.size == 0:
            return f"{self.values.dtype} of shape {shape}"
        return f"integers from {self.values.min()} to {self.values.max()} of shape {shape}"
