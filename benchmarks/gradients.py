"""Weight gradients of the ARM image against float64 autodiff on the same forward integers.

The image and the interpreter are shown to be in the same state after each step, bit for bit;
the interpreter's integer gradients are then those of the image, and are compared with an
independent float64 backpropagation. Prints the worst cosine of every trained tensor.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from codegen.firmware.bundle import load_bundle
from codegen.importer.model import import_model
from codegen.program.lowering import lower
from codegen.program.plans import default_plans
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.float_autodiff import cosines
from codegen.reference.interpreter import Interpreter
from fleet.firmware import compile_firmware
from simulator.machines.measure import ImageEngine

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
SAMPLES = 10
WANTED = 0.999


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    calibration = load_calibration(DIGITS / "calibration.npz")
    graph = quantize(import_model(DIGITS / "digits.onnx"), calibration)
    samples = quantize_input(graph, np.moveaxis(calibration, 1, -1))
    out = Path("out/benchmarks/gradients")
    compile_firmware(DIGITS / "digits.onnx", "stm32f746", [], DIGITS / "calibration.npz", out)
    plan = default_plans(graph)[-1]
    program = lower(graph, plan)
    worst: dict[str, float] = {}
    with ImageEngine(load_bundle(out), plan.id) as image:
        for index in range(SAMPLES):
            interpreter = Interpreter(program)
            # Rate 0 leaves the weights alone, so that every sample starts from the same ones.
            interpreter.train_step(samples[index], index % 10, 0, 1)
            image.train_step(samples[index], index % 10, 0, 1)
            if not np.array_equal(interpreter.logits, image.logits):
                print("image and interpreter disagree on the logits", file=sys.stderr)
                return 1
            for name, cosine in cosines(interpreter, index % 10).items():
                worst[name] = min(worst.get(name, 1.0), cosine)
    for name, cosine in worst.items():
        print(f"{name:16} {cosine:.6f}")
    lowest = min(worst.values())
    print(f"worst of {len(worst)} tensors, {SAMPLES} samples: {lowest:.6f} (wanted {WANTED})")
    return 0 if lowest >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
