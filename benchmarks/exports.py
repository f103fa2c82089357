"""Small files of many exporters: do they agree with onnxruntime, and what does training them take?

Each classifier of tests/codegen/models, and some of them after onnxruntime's `quantize_static`, is
compiled with the plans that the compiler makes by itself and run in emulation. Agreement is the
share of samples that the compiler hasn't seen and that get the class onnxruntime gives them with
the same file. `python -m tests.codegen.models.make_models` and its neighbours wrote the files.

    python -m benchmarks.exports [--board stm32f746] [--json FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from codegen.firmware.bundle import Bundle
from codegen.graph.ir import Loss
from codegen.importer.model import import_model
from codegen.quantization.calibration import uncoded
from fleet.cli._output import console, percent, table
from fleet.firmware import compile_firmware
from simulator.machines.measure import measure
from tests.codegen.exported import MODELS
from tests.codegen.int8_network import int8_outputs
from tests.codegen.models.patterns import patterns
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file

EXPORTS = (
    *("mobilenet_v1_script", "mobilenet_v2_dynamo", "mobilenet_v3_script", "efficientnet_dynamo"),
    *("proxylessnas_script", "mcunet_dynamo", "fire_script", "shufflenet_script"),
    *("shufflenet_v2_dynamo", "ghostnet_script", "mobileone_dynamo", "convmixer_script"),
    *("resnet8_dynamo", "resnext_script", "ds_cnn_dynamo", "matchbox_script"),
    *("bc_resnet_dynamo", "temporal_script", "inertial_dynamo"),
    *("convnext_dynamo", "sequence_script", "gru_keywords_dynamo", "stacked_lstm_script"),
    *("keras_pictures", "keras_signals", "keras_lstm"),
)
QUANTIZED = ("mobilenet_v3_script", "resnet8_dynamo", "ds_cnn_dynamo", "keras_pictures")
SEEN, UNSEEN = 100, 300
CLASSES: Loss = "cross-entropy"


@dataclass(frozen=True)
class Figures:
    """One file: shares from 0 to 1, bytes, instructions of the plan that trains everything."""

    name: str
    form: str
    accuracy: float
    """Of the file in onnxruntime."""
    agreement: float
    trained: int
    sram_bytes: int
    flash_bytes: int
    forward_instructions: int
    step_instructions: int


def figures(name: str, path: Path, form: str, board: str, folder: Path) -> Figures:
    """Compiles ``path`` and measures it."""
    source = import_model(path, CLASSES)
    shape, classes = source.sample_shape, source.head.bias.size
    seen, labels = patterns(shape, classes, SEEN, seed=1)
    x, y = patterns(shape, classes, UNSEEN, seed=2)
    calibration = folder / "seen.npz"
    np.savez(calibration, x=seen, y=labels)
    given = calibration if uncoded(source) else None
    out = folder / f"{name}-{form}"
    bundle: Bundle = compile_firmware(path, board, [], given, out, loss=CLASSES)
    plan = bundle.report.plans[-1]
    counted = measure(out, plan.name).instructions
    expected = outputs(onnx.load(path), x)
    return Figures(
        name=name,
        form=form,
        accuracy=float((expected.argmax(axis=1) == y).mean()),
        agreement=agreement(int8_outputs(source, x, seen), expected),
        trained=plan.delta_values,
        sram_bytes=plan.sram_bytes.total,
        flash_bytes=bundle.report.flash_bytes.total,
        forward_instructions=counted.forward,
        step_instructions=counted.step,
    )


COLUMNS = [
    *("file", "form", "right in onnxruntime", "same class on the device"),
    *("trained values", "SRAM", "flash", "forward, M", "step, M"),
]


def shown(results: Sequence[Figures]) -> list[list[object]]:
    """Rows of the table."""
    return [
        [
            result.name,
            result.form,
            percent(result.accuracy),
            percent(result.agreement),
            result.trained,
            result.sram_bytes,
            result.flash_bytes,
            f"{result.forward_instructions / 1e6:.2f}",
            f"{result.step_instructions / 1e6:.2f}",
        ]
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPORTS))
    parser.add_argument("--board", default="stm32f746")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    screen = console()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in options.names or EXPORTS:
            path = MODELS / f"{name}.onnx"
            with screen.status(name):
                results.append(figures(name, path, "float", options.board, folder))
                if name not in QUANTIZED:
                    continue
                source = import_model(path, CLASSES)
                seen, _ = patterns(source.sample_shape, source.head.bias.size, SEEN, seed=1)
                target = folder / f"{name}.onnx"
                quantize_file(path, target, seen)
                results.append(figures(name, target, "QDQ", options.board, folder))
    screen.print(table(f"On {options.board}: bytes and instructions", COLUMNS, shown(results)))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
