"""MCUNet's forward integers, gradients and one sparse step against PyTorch's numbers for them.

The numpy interpreter computes what images compute bit for bit (tests/end_to_end); its figures are
compared with the shared fixtures, which PyTorch made from the network's own training code.

    python -m benchmarks.mcunet_gradients
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from benchmarks.mcunet import require_model
from codegen.program import blob
from codegen.program.lowering import lower
from codegen.reference.interpreter import Interpreter
from fleet.cli._output import console, table
from tests.codegen import mcunet
from tests.codegen.random_graphs import full_plan

PUBLISHED_LAYERS = 24
"""The published plans train the last so many convolutions at most."""


@dataclass(frozen=True)
class Figure:
    """What was measured, and what is wanted of it: at least, or at most; None where nothing is."""

    of: str
    what: str
    found: float
    least: float | None = None
    most: float | None = None

    @property
    def missed(self) -> bool:
        return (self.least is not None and self.found < self.least) or (
            self.most is not None and self.found > self.most
        )

    def row(self) -> list[object]:
        wanted = f"≥ {self.least}" if self.least is not None else ""
        if self.most is not None:
            wanted = f"≤ {self.most}"
        return [self.of, self.what, wanted, f"{self.found:.6f}", "missed" if self.missed else ""]


def gradient_figures(index: int) -> list[Figure]:
    """Figures of one fixture input."""
    values = mcunet.fixture()
    interpreter = Interpreter(lower(mcunet.graph(), full_plan(mcunet.graph())))
    interpreter.train_step(*mcunet.sample(index), 0, 1)
    arrays = [array for name, array in interpreter.arrays.items() if "activation" in name][:-1]
    equal = sum(
        int(array.sum()) == total and int((array**2).sum()) == square
        for array, total, square in zip(
            arrays, values[f"in{index}.act_sum"], values[f"in{index}.act_sumsq"], strict=False
        )
    )
    biases, weights, scaled = [], [], []
    layers = mcunet.graph().convolutions
    for op in layers:
        mine = mcunet.raw_gradient(interpreter, op.name, "bias")
        biases.append(mcunet.cosine(mine, values[f"in{index}.gb_raw.{op.name}"]))
        name = f"in{index}.gw_raw.{op.name}"
        if name in values:
            reference = mcunet.in_device_order(op.name, values[name])
            found = mcunet.raw_gradient(interpreter, op.name, "weight")
            weights.append(mcunet.cosine(found, reference))
        # Dead channels have scales near 1e-9, whose squares swamp every norm: set aside.
        alive = op.weight_scale > 1e-6
        steps = mcunet.graph().tensors[op.input].scale * op.weight_scale
        reference = values[f"in{index}.gb_qas.{op.name}"][alive]
        ratio = np.linalg.norm((mine / steps**2)[alive]) / np.linalg.norm(reference)
        scaled.append(abs(float(ratio) - 1))
    of, wrong = f"input {index}", "activations without the reference's checksums"
    published = scaled[-PUBLISHED_LAYERS:]
    return [
        Figure(of, f"{wrong}, of {len(arrays)}", len(arrays) - equal, most=0),
        Figure(of, "cosine of bias gradients, worst layer", min(biases), least=0.999),
        Figure(of, "the same, last 20 layers, end to end", min(biases[-20:]), least=0.99),
        Figure(of, f"cosine of {len(weights)} weight gradients, worst", min(weights), least=0.999),
        Figure(
            of, f"QAS-scaled norm off by, last {PUBLISHED_LAYERS} layers", max(published), most=0.01
        ),
        Figure(of, "the same, all layers", max(scaled)),
    ]


def step_figures() -> list[Figure]:
    """Figures of the published sparse step (plan 99kb, rate 0.025, input 0)."""
    program = lower(mcunet.graph(), mcunet.plan("99kb"))
    interpreter = Interpreter(program)
    before = blob.values_of(mcunet.graph())
    picture, label = mcunet.sample(0)
    interpreter.train_step(picture, label, round(0.025 * 2**20), 1)
    off, differences = [], []
    for update in program.plan.weights:
        name = f"{update.layer}.weight"
        after = mcunet.fixture()[f"sgd_sparse.w_after.{update.layer}"]
        wanted = np.clip(mcunet.in_device_order(update.layer, after), -127, 127) - before[name]
        mine = (interpreter.tensors[name] - before[name]).astype(np.float64)
        mine[..., list(update.channels)] += interpreter.fractions[name] / 256
        norm = float(np.linalg.norm(wanted))
        off.append(abs(float(np.linalg.norm(mine)) / norm - 1))
        differences.append(float(np.linalg.norm(mine - wanted)) / norm)
    interpreter.score(picture, label)
    of = "sparse step"
    return [
        Figure(of, "norm of the change off by, worst layer", max(off), most=0.01),
        Figure(of, "norm of the difference", max(differences)),
        Figure(of, "loss after it", interpreter.loss_q16 / 2**16, most=0.01),
    ]


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    require_model()
    figures = [*gradient_figures(0), *gradient_figures(1), *step_figures()]
    titles = ["of", "what", "wanted", "measured", ""]
    console().print(table("MCUNet against PyTorch", titles, [item.row() for item in figures]))
    return 1 if any(item.missed for item in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
