"""Which loss a model is trained with: what model and labels say, what the user said, or a guess.

A device trains classifiers, whose labels are class numbers, by cross entropy; answers of yes or no,
one or several, by the binary cross entropy of each; and what stands for targets, or for the input
itself, by the mean squared error. A file of a network seldom says which of these it is: where
nothing tells them apart, the importer asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from codegen.errors import ModelError
from codegen.graph.floats import LossChoice
from codegen.graph.ir import MOST_BINARY_OUTPUTS, Loss
from codegen.importer.labels import LABELS, Labels

TARGET_ROOM = 2.0
"""A device's targets may be so many times larger than those of the samples."""

_MEANING: Mapping[Loss, str] = {
    "cross-entropy": "the outputs are logits, one per class",
    "binary": "each output is the logit of a yes or no",
    "mse": "they reconstruct the input, or stand for targets that are in the samples as floats "
    f"'{LABELS}' (samples, outputs)",
    "none": "nothing is trained",
}


@dataclass(frozen=True)
class Outputs:
    """What the file tells of a model's outputs; sizes are those of axes above 1, without batch.

    ``after`` is the function behind them, "Softmax" or "Sigmoid", or ''. ``largest`` is an output
    of the file that tells which of them is the largest, or ''. ``coded``: they are the codes of a
    picture, not made by a matrix.
    """

    model: str
    name: str
    sizes: tuple[int, ...]
    input_sizes: tuple[int, ...]
    after: str
    largest: str
    coded: bool = False

    @property
    def count(self) -> int:
        """How many there are."""
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def can_be_the_input(self) -> bool:
        """Whether they have the input's shape, or that flattened, and aren't probabilities."""
        flat = (int(np.prod(self.input_sizes, dtype=np.int64)),)
        return not self.after and self.sizes in (self.input_sizes, flat)

    @property
    def are_a_picture(self) -> bool:
        """Whether they have several axes, as logits never have."""
        return len(self.sizes) > 1

    @property
    def what(self) -> str:
        """For the beginning of a sentence about them."""
        return f"model '{self.model}': output '{self.name}'"

    @property
    def losses(self) -> list[Loss]:
        """What they can be trained with."""
        if self.coded:
            return ["mse", "none"] if self.can_be_the_input else ["none"]
        found: list[Loss] = []
        if self.count > 1 and not self.are_a_picture and self.after != "Sigmoid":
            found.append("cross-entropy")
        if self.count <= MOST_BINARY_OUTPUTS and not self.are_a_picture and self.after != "Softmax":
            found.append("binary")
        if not self.after:
            found.append("mse")
        return [*found, "none"]


def choose_loss(
    outputs: Outputs, wanted: Loss | LossChoice | None, samples: Path | str | None
) -> LossChoice:
    """The loss of a model with ``outputs``.

    ``wanted`` is what the user said, or what was chosen for another file of the network.
    ``samples`` is an .npz whose labels `y`, if it has any, are looked at where the model itself
    leaves it open. Raises ModelError where nobody can know, and where the device has no such loss;
    CalibrationError where ``samples`` can't be read.
    """
    labels = Labels.read(samples)
    if isinstance(wanted, LossChoice):
        said = _as_wanted(outputs, wanted.loss, labels) if wanted.target_scale is None else wanted
        return replace(said, because=wanted.because)
    if wanted is not None:
        return _as_wanted(outputs, wanted, labels)
    if outputs.coded:
        return _of_picture(outputs, labels)
    if outputs.after == "Softmax":
        return LossChoice("cross-entropy", "the model ends in a Softmax")
    if outputs.after == "Sigmoid":
        if "binary" not in outputs.losses:
            raise ModelError(
                f"{outputs.what} ends in a Sigmoid and has {_shown(outputs)}: a label has "
                f"bits for {MOST_BINARY_OUTPUTS} of yes and no at most; export the model without "
                "the Sigmoid, with fewer outputs, or say --loss none"
            )
        return LossChoice("binary", "the model ends in a Sigmoid")
    return _told_by_shape(outputs) if labels is None else _told_by_labels(outputs, labels)


def check_known(choice: LossChoice) -> None:
    """Raises ModelError for a loss that is a guess, with what may be said instead."""
    if choice.guessed:
        said = [f"--loss {loss} says that {_MEANING[loss]}." for loss in _MEANING]
        raise ModelError(
            f"output '{choice.output}': what is it trained for? {choice.because[0].upper()}"
            f"{choice.because[1:]}. {' '.join(said)} Labels '{LABELS}' tell as well"
        )


def _of_picture(outputs: Outputs, labels: Labels | None, said: str = "") -> LossChoice:
    """That of a picture's codes, which are trained against the input only.

    ``said`` is who says that they are; a vector may be something else.
    """
    picture = "such a picture, which no matrix makes, is trained against the model's own input only"
    instead = "end the model in a Gemm (with a Reshape behind it, where that is to be a picture)"
    if labels is not None and labels.are_real and not labels.are_the_input:
        fits = labels.could_be_targets(outputs.count)
        are = "targets of its size" if fits else labels.description
        raise ModelError(
            f"{outputs.what}: the labels '{LABELS}' of the samples are {are}; {picture}: leave the "
            f"labels out, or {instead}"
        )
    if outputs.can_be_the_input:
        if not said and labels is not None and labels.are_the_input:
            said = f"the labels '{LABELS}' of the samples are the inputs themselves"
        elif not said and outputs.are_a_picture:
            said = "its output has the shape of its input"
        if said:
            return LossChoice("mse", said)
        raise _asked(
            outputs,
            f"has as many values ({outputs.count}) as the input, in a row, and no matrix makes "
            "them: is this an autoencoder?",
            "A classifier ends in its logits, without an activation",
        )
    made = f", made by a {outputs.after}" if outputs.after else ""
    raise ModelError(
        f"{outputs.what} has {_shown(outputs)}{made}, and the input {list(outputs.input_sizes)}; "
        f"{picture}: say --loss none to infer with it, or {instead}"
    )


def _told_by_shape(outputs: Outputs) -> LossChoice:
    if outputs.are_a_picture and outputs.can_be_the_input:
        return LossChoice("mse", "its output has the shape of its input")
    if outputs.can_be_the_input:
        raise _asked(
            outputs,
            f"has as many values ({outputs.count}) as the input, and no Softmax: is this a "
            "classifier or an autoencoder?",
            f"Integer labels '{LABELS}' beside the samples, of at least half of the classes, tell "
            "as well",
        )
    if outputs.count == 1 or outputs.are_a_picture:
        raise _asked(
            outputs,
            f"has {_shown(outputs)}, and no labels '{LABELS}' beside samples say what for.",
            f"Labels '{LABELS}' tell as well",
        )
    if outputs.largest:
        return LossChoice("cross-entropy", f"output '{outputs.largest}' tells the largest of them")
    return LossChoice(
        "cross-entropy",
        f"the model has no Softmax, and there are no labels '{LABELS}' beside samples",
        guessed=True,
    )


def _told_by_labels(outputs: Outputs, labels: Labels) -> LossChoice:
    possible, count = outputs.losses, outputs.count
    if outputs.can_be_the_input and labels.are_the_input:
        return LossChoice("mse", f"the labels '{LABELS}' of the samples are the inputs themselves")
    if outputs.are_a_picture and outputs.can_be_the_input and labels.are_integers:
        return LossChoice("mse", "its output has the shape of its input")
    if "binary" in possible and labels.could_be_bits(count):
        kind = "are 0 and 1" if count == 1 else "are rows of zeros and ones"
        return LossChoice("binary", f"the labels '{LABELS}' of the samples {kind}")
    if "cross-entropy" in possible and labels.could_be_classes(count):
        if labels.cover(count) or not outputs.can_be_the_input:
            return LossChoice("cross-entropy", f"the labels '{LABELS}' of the samples are classes")
        return _told_by_shape(outputs)
    if labels.could_be_targets(count) and not labels.are_integers:
        return _targets(outputs, labels, f"the labels '{LABELS}' of the samples are real numbers")
    mend = labels.remedy(count)
    raise _asked(
        outputs,
        f"has {_shown(outputs)}, and the samples' labels '{LABELS}' are {labels.description}: "
        f"neither numbers of classes 0 … {count - 1}, nor zeros and ones, nor real numbers for "
        "each value.",
        f"Or mend the labels '{LABELS}'" + (f" ({mend})" if mend else ""),
    )


def _targets(outputs: Outputs, labels: Labels, because: str) -> LossChoice:
    largest = labels.largest
    if not np.isfinite(largest) or largest == 0.0:
        found = "all 0" if largest == 0.0 else "not all finite"
        raise ModelError(
            f"{outputs.what}: the targets '{LABELS}' of the samples are {found}; give typical ones"
        )
    return LossChoice("mse", because, target_scale=TARGET_ROOM * largest / 32767)


def _asked(outputs: Outputs, why: str, more: str) -> ModelError:
    said = [f"--loss {loss} says that {_MEANING[loss]}." for loss in outputs.losses]
    return ModelError(f"{outputs.what} {why} {' '.join(said)} {more}")


def _as_wanted(outputs: Outputs, wanted: Loss, labels: Labels | None) -> LossChoice:
    if wanted not in outputs.losses:
        made = f", made by a {outputs.after}" if outputs.after else ""
        raise ModelError(
            f"{outputs.what} has {_shown(outputs)}{made}, and --loss {wanted} is not for "
            f"such; it takes {', '.join(f'--loss {loss}' for loss in outputs.losses)}, or export "
            "the model with another end"
        )
    because = f"--loss {wanted} says so"
    if wanted != "mse":
        return LossChoice(wanted, because)
    if outputs.coded:
        return _of_picture(outputs, labels, because)
    if labels is not None and labels.could_be_targets(outputs.count) and not (
        outputs.can_be_the_input and labels.are_the_input
    ):  # fmt: skip
        return _targets(outputs, labels, because)
    if outputs.can_be_the_input:
        return LossChoice("mse", because)
    raise ModelError(
        f"{outputs.what} has {_shown(outputs)}, and the input {list(outputs.input_sizes)}: "
        "--loss mse is against the model's own input, or against targets; give these beside the "
        f"samples, as floats '{LABELS}' (samples, {outputs.count}) in the archive of --calibration"
    )


def _shown(outputs: Outputs) -> str:
    return " x ".join(map(str, outputs.sizes)) + " values" if outputs.count > 1 else "one value"
