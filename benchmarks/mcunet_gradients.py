"""MCUNet's forward integers, gradients and one sparse step against PyTorch's numbers for them.

The numpy interpreter computes what images compute bit for bit (tests/end_to_end); its figures are
compared with the shared fixtures, which PyTorch made from the network's own training code.

    python -m benchmarks.mcunet_gradients
"""

from __future__ import annotations

import sys

import numpy as np

from codegen import blob
from codegen.interpreter import Interpreter
from codegen.lowering import lower
from codegen.plans import Plan, WeightUpdate
from fleet.cli._output import console, table
from tests.codegen import mcunet

PUBLISHED_LAYERS = 24
"""The published plans train the last so many convolutions at most."""


def everything() -> Plan:
    """A plan that trains every value."""
    layers = mcunet.graph().convolutions
    weights = tuple(WeightUpdate(op.name, tuple(range(op.weight.shape[-1]))) for op in layers)
    return Plan("full", tuple(op.name for op in layers), weights, True, "q8.8")


def gradient_rows(index: int) -> list[list[object]]:
    """Figures of one fixture input: what, wanted, measured."""
    values = mcunet.fixture()
    interpreter = Interpreter(lower(mcunet.graph(), everything()))
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
    wanted = f"input {index}"
    return [
        [wanted, "activations with the reference's checksums", f"{len(arrays)}", f"{equal}"],
        [wanted, "cosine of bias gradients, worst layer", "≥ 0.999", f"{min(biases):.6f}"],
        [wanted, "the same, last 20 layers, end to end", "≥ 0.99", f"{min(biases[-20:]):.6f}"],
        [wanted, f"cosine of {len(weights)} weight gradients, worst", "≥ 0.999", min(weights)],
        [
            wanted,
            f"QAS-scaled norm off by, last {PUBLISHED_LAYERS} layers",
            "≤ 1 %",
            f"{100 * max(scaled[-PUBLISHED_LAYERS:]):.2f} %",
        ],
        [wanted, "the same, all layers", "", f"{100 * max(scaled):.2f} %"],
    ]


def step_rows() -> list[list[object]]:
    """Figures of the published sparse step (plan 99kb, rate 0.025, input 0)."""
    program = lower(mcunet.graph(), mcunet.plan("99kb"))
    interpreter = Interpreter(program)
    before = blob.unpack(mcunet.graph(), blob.pack(mcunet.graph()))
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
    return [
        [
            "sparse step",
            "norm of the change off by, worst layer",
            "≤ 1 %",
            f"{100 * max(off):.2f} %",
        ],
        ["sparse step", "norm of the difference", "", f"{100 * max(differences):.2f} %"],
        ["sparse step", "loss after it", "≤ 0.01", f"{interpreter.loss_q16 / 2**16:.6f}"],
    ]


def main() -> int:
    if not mcunet.MODEL.exists():
        print(f"{mcunet.MODEL} isn't there; set TINYFLEET_SHARED to its folder", file=sys.stderr)
        return 1
    rows = [*gradient_rows(0), *gradient_rows(1), *step_rows()]
    console().print(table("MCUNet against PyTorch", ["of", "what", "wanted", "measured"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
