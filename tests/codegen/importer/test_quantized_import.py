"""Models that come quantized (QDQ): onnxruntime makes them, and is the oracle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process

from codegen.arithmetic.layers import logit_scale
from codegen.errors import CalibrationError
from codegen.graph.ir import Conv
from codegen.importer.model import import_model, import_proto
from codegen.operators.execution import evaluate
from codegen.program.lowering import lower
from codegen.program.plans import default_plans
from codegen.quantization.calibration import uncoded
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.float_autodiff import forward_integers
from codegen.reference.interpreter import Interpreter
from tests.codegen.onnxruntime_oracle import outputs, quantize_file, run

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return load_calibration(DIGITS / "calibration.npz")


def quantized_digits(
    folder: Path, samples: np.ndarray, activation: QuantType, per_channel: bool
) -> Path:
    prepared, target = folder / "prepared.onnx", folder / "quantized.onnx"
    quant_pre_process(str(DIGITS / "digits.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_file(prepared, target, samples, activation=activation, per_channel=per_channel)
    return target


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activation", [QuantType.QInt8, QuantType.QUInt8])
def test_a_model_quantized_by_onnxruntime_gives_its_logits(
    activation: QuantType, per_channel: bool, samples: np.ndarray, tmp_path: Path
) -> None:
    path = quantized_digits(tmp_path, samples, activation, per_channel)
    graph = quantize(import_model(path), None)
    interpreter = Interpreter(lower(graph, default_plans(graph)[0]))
    close = same = 0
    for sample, expected in zip(samples, outputs(onnx.load(path), samples[:40]), strict=False):
        interpreter.score(quantize_input(graph, np.moveaxis(sample, 0, -1)), 0)
        got = interpreter.logits * logit_scale(graph)
        same += int(np.argmax(got) == np.argmax(expected))
        # onnxruntime rounds its logits to 8 bits, we don't.
        close += int(np.abs(got - expected).max() < 0.06 * np.ptp(expected))
    assert same >= 39
    assert close >= 38


def test_stored_integers_survive_unchanged(samples: np.ndarray, tmp_path: Path) -> None:
    path = quantized_digits(tmp_path, samples, QuantType.QInt8, per_channel=True)
    stored = {
        entry.name: onnx.numpy_helper.to_array(entry)
        for entry in onnx.load(str(path)).graph.initializer
    }
    graph = quantize(import_model(path), None)
    integers = [array for array in stored.values() if array.dtype == np.int8 and array.ndim == 4]
    assert len(integers) == len(graph.convolutions)
    for op in graph.convolutions:
        layout = (
            op.weight.transpose(0, 3, 1, 2)
            if isinstance(op, Conv)
            else op.weight.transpose(2, 0, 1)[:, None]
        )
        assert any(
            array.shape == layout.shape and np.array_equal(array, layout) for array in integers
        ), op.name


def test_forward_integers_are_within_one_step_of_onnxruntime(
    samples: np.ndarray, tmp_path: Path
) -> None:
    path = quantized_digits(tmp_path, samples, QuantType.QInt8, per_channel=True)
    graph = quantize(import_model(path), None)
    model = onnx.load(str(path))
    codes = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    for name in codes:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    result = run(model, samples[:1], list(codes))
    by_source = {codes[name]: values for name, values in zip(codes, result, strict=True)}
    interpreter = Interpreter(lower(graph, default_plans(graph)[0]))
    interpreter.score(quantize_input(graph, np.moveaxis(samples[0], 0, -1)), 0)
    known, _ = forward_integers(interpreter)
    compared = 0
    makers = {node.output[0]: node for node in model.graph.node}
    for source, values in by_source.items():
        node = makers.get(source)
        while node is not None and node.op_type in ("Relu", "Clip"):
            node = makers.get(node.input[0])
        # Pooled features keep the scale of what is pooled on the device.
        if node is None or node.op_type not in ("Conv", "Add") or node.name not in known:
            continue
        expected = np.moveaxis(values[0], 0, -1).astype(int)
        difference = np.abs(known[node.name] - expected)
        # Single steps arise where float32 lands on the other side of a half, and then spread.
        assert difference.max() <= 2, node.name
        assert (difference > 0).mean() < 0.02, node.name
        compared += 1
    assert compared >= 10


def test_a_calibration_set_for_a_quantized_model_is_refused(
    samples: np.ndarray, tmp_path: Path
) -> None:
    path = quantized_digits(tmp_path, samples, QuantType.QInt8, per_channel=True)
    with pytest.raises(CalibrationError, match="quantized already"):
        quantize(import_model(path), samples)


def test_a_half_quantized_model_needs_a_calibration_set_for_the_rest(
    samples: np.ndarray, tmp_path: Path
) -> None:
    path = quantized_digits(tmp_path, samples, QuantType.QInt8, per_channel=True)
    model = onnx.load(str(path))
    nodes = list(model.graph.node)
    add = next(node for node in nodes if node.op_type == "Add")
    quantizer = next(node for node in nodes if add.output[0] in node.input)
    reader = next(node for node in nodes if quantizer.output[0] in node.input)
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == reader.output[0]:
                node.input[index] = add.output[0]
    model.graph.node.remove(quantizer)
    model.graph.node.remove(reader)
    half = import_proto(model)
    with pytest.raises(CalibrationError, match=r"has no QuantizeLinear.*give a calibration set"):
        quantize(half, None)
    whole = quantize(import_model(path), None)
    mixed = quantize(half, samples)
    left_out = uncoded(half)
    assert len(left_out) == 1
    for name, tensor in mixed.tensors.items():
        if name not in left_out:
            assert (tensor.scale, tensor.zero_point) == (
                whole.tensors[name].scale,
                whole.tensors[name].zero_point,
            )
    measured, stored = mixed.tensors[left_out[0]], whole.tensors[left_out[0]]
    assert 0.5 < measured.scale / stored.scale < 2.0


def test_the_float_graph_of_a_quantized_model_saturates_where_its_codes_do(
    samples: np.ndarray, tmp_path: Path
) -> None:
    # onnxruntime leaves Relu nodes out where the zero point makes them.
    path = quantized_digits(tmp_path, samples, QuantType.QInt8, per_channel=True)
    assert not any(node.op_type == "Relu" for node in onnx.load(str(path)).graph.node)
    exact = import_model(DIGITS / "digits.onnx")
    graph = import_model(path)
    expected = evaluate(exact, samples[:16])[exact.head.output]
    got = evaluate(graph, samples[:16])[graph.head.output]
    assert np.abs(got - expected).max() < 0.1 * np.ptp(expected)
