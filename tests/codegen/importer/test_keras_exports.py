"""What Keras writes by itself and what through a SavedModel (tests/codegen/models)."""

from __future__ import annotations

import onnx
import pytest

from codegen.errors import ModelError
from codegen.importer.model import import_model, import_proto
from tests.codegen.exported import MODELS


def without_constants(model: onnx.ModelProto, nodes: int) -> onnx.ModelProto:
    """``model`` as Keras 3.15 exports one: constants of the first ``nodes`` nodes are inputs."""
    kept = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node[:nodes]:
        constant = kept[node.input[1]]
        model.graph.initializer.remove(constant)
        node.input[1] = f"sequential/normalization/{node.op_type}:0"
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(node.input[1], constant.data_type, constant.dims)
        )
    return model


def test_lost_constants_are_found_in_a_model_that_went_through_a_saved_model() -> None:
    path = MODELS / "keras_signals.onnx"
    assert import_model(path).sample_shape == (48, 6)
    broken = without_constants(onnx.load(path), 2)
    message = r"3 inputs, .*'sequential/normalization/Sub:0'.* are constants .*--saved-model FOLDER"
    with pytest.raises(ModelError, match=message):
        import_proto(broken)


def test_two_inputs_of_a_user_are_named() -> None:
    model = onnx.load(MODELS / "keras_pictures.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("angle", 1, [1, 3]))
    with pytest.raises(ModelError, match=r"2 inputs, 'keras_tensor', 'angle'; export a network"):
        import_proto(model)
