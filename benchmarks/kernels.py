"""Instructions per multiply-accumulate of every kernel, counted on the emulated Cortex-M7."""

import sys
from collections import Counter
from pathlib import Path

from codegen.importer import import_model
from codegen.lowering import lower
from codegen.plans import default_plans
from codegen.quantize import load_calibration, quantize
from fleet.firmware import compile_firmware
from simulator.measure import measure

DIGITS = Path(__file__).parents[1] / "examples" / "digits"


def main() -> int:
    graph = quantize(
        import_model(DIGITS / "digits.onnx"), load_calibration(DIGITS / "calibration.npz")
    )
    out = Path("out/benchmarks/kernels")
    compile_firmware(DIGITS / "digits.onnx", "stm32f746", [], DIGITS / "calibration.npz", out)
    for plan in default_plans(graph):
        macs: Counter[str] = Counter()
        for step in lower(graph, plan).steps:
            macs[f"tf_{step.kernel}"] += step.macs
        measured = measure(out, plan.id).instructions
        print(f"plan {plan.name}: forward {measured.forward:,}, step {measured.step:,}")
        for kernel, count in measured.by_kernel.items():
            if count < measured.step / 100:
                continue
            per_mac = f"{count / macs[kernel]:7.2f} per MAC" if macs[kernel] else ""
            print(f"  {kernel:32} {count:>10,} {per_mac}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
